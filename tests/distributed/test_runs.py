"""Whole runs through the real launcher: golden losses, ranks, resuming after a kill, and the errors people meet."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
from building import build_data, read_lines, series, write_recipe
from launching import deepspeed_command, forked_command, kill, launch, launch_each, launch_forked, start
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prealign_ds.files import read_json

GOLDEN = Path(__file__).parent / "golden_losses.json"
PRETRAIN = "launchers/pretrain.py"
ZERO2, ZERO3 = (f"deepspeed=tests/distributed/zero{zero}_fp32.json" for zero in (2, 3))
STEP_10 = Path("checkpoints/pretrain/step-00000010")


MISTAKES = [
    (["model.num_layer=3"], "model.num_layer: unknown key; did you mean 'num_layers'?"),
    (["world_size=3"], "the configuration asks for 3 ranks, the launcher started 1"),
    (["run_dir={data}/straight", "seed=6"], "seed: 5 there, 6 now"),
    (["pretrain.batch_tokens=100"], "is not a multiple of data.sequence_length 32; the nearest are 96 or 128"),
    (["data.tokenizer={data}"], "no tokenizer.json"),
    (["data.corpora.0.path={data}/nothing"], "no corpus here"),
    (["data.corpora.0.split=tran"], "no split 'tran'; the manifest has ['clone', 'train', 'valid']"),
    (["table.path={data}/none.parquet"], "none.parquet: no such file"),
    (["deepspeed=ds_configs/none.json"], "ds_configs/none.json does not exist"),
    ([ZERO3, "log.gradient_cosine_every_steps=5"], "zero3_fp32.json has ZeRO stage 3; set it to 0, or use ZeRO 0"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def straight(data):
    """The recipe on one rank; from the same start, beyond and beyond2, on one rank and on two."""
    beyond = ["pretrain.align_every_steps=4", "codeswitch.unit=sentence", "log.gradient_cosine_every_steps=2"]
    beyond += ["evaluation={}"]
    launch_each(
        (1, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/straight"),
        (1, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/beyond", *beyond),
        (2, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/beyond2", *beyond, ZERO2),
    )
    return data / "straight"


@pytest.fixture(scope="module")
def two_ranks(data):
    """The recipe on two ranks under ZeRO-3, with TensorBoard."""
    launch(2, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/two", ZERO3, "log.tensorboard=true")
    return data / "two"


@pytest.fixture(scope="module")
def afterwards(data, straight, two_ranks):
    """From one start: what is asked of finished runs, and mistakes, by their messages; and the files before them."""
    found = {"files": {path: path.stat().st_mtime_ns for run in (straight, two_ranks) for path in run.rglob("*")}}
    jobs = {"again": (1, PRETRAIN, data / "recipe.yaml", f"run_dir={straight}")}
    jobs["evaluated"] = (2, "launchers/evaluate.py", straight)
    for run in (straight, two_ranks):
        words = ("--model", run / STEP_10, "--only", "perplexity", "similarity")
        jobs[run] = (1, "launchers/evaluate.py", run, *words)
    for number, (overrides, message) in enumerate(MISTAKES):
        filled = [override.format(data=data) for override in overrides]
        jobs[message] = (1, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/bad{number}", *filled)
    return found | dict(zip(jobs, launch_each(*jobs.values(), check=False), strict=True))


def test_golden_losses_of_twenty_steps(straight):
    found = series(straight, "loss")
    assert [row[:2] for row in found] == [("align", n) for n in range(1, 11)] + [("pretrain", n) for n in range(1, 11)]
    if os.environ.get("PREALIGN_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps([round(row[2], 5) for row in found]))
    assert [row[2] for row in found] == pytest.approx(read_json(GOLDEN), rel=2e-4)


def test_the_run_folder_tells_everything(straight):
    metrics, evaluations = read_lines(straight / "metrics.jsonl"), read_lines(straight / "eval.jsonl")
    assert len(metrics[0]["alignment_loss"]) == len(metrics[0]["aligned_cosine"]) == 4
    assert sum(metrics[9]["aligned_cosine"]) > sum(metrics[9]["random_cosine"])
    assert sum(metrics[9]["alignment_loss"]) < 0.9 * sum(metrics[0]["alignment_loss"])
    assert 0 < metrics[12]["codeswitch_rate"] < 0.3 and metrics[12]["codeswitch_coverage"] > 0.8
    assert "codeswitch_rate" not in metrics[3]
    assert [(e["stage"], e["step"], e["tokens"]) for e in evaluations] == [
        ("align", 5, 1280),
        ("align", 10, 2560),
        ("pretrain", 5, 3840),
        ("pretrain", 10, 5120),
    ]
    assert set(evaluations[-1]["perplexity"]) == {"en", "clone"}
    assert [m["samples"] for m in metrics] == [8 * n for n in range(1, 21)]
    saved = read_json(straight / "checkpoints" / "align" / "step-00000010" / "manifest.json")
    assert saved["settings"]["seed"] == 5 and saved["step"] == 10 and saved["samples"] == [0, 80]
    assert (straight / "config.yaml").is_file() and read_json(straight / "model" / "training.json")["tokens"] == 5120
    assert sorted(p.name for p in (straight / "checkpoints" / "pretrain").glob("step-*")) == [
        "step-00000008",
        "step-00000010",
    ]


def test_the_final_model_loads_in_transformers_without_wrapper_names(straight):
    model = AutoModelForCausalLM.from_pretrained(straight / "model", local_files_only=True)
    names = load_file(straight / "model" / "model.safetensors")
    assert all(name.startswith("transformer.") for name in names)
    assert len(AutoTokenizer.from_pretrained(straight / "model")) == 400 and model.config.vocab_size == 896


def test_evaluate_repeats_the_perplexity_of_the_run(straight, afterwards):
    assert afterwards["evaluated"].returncode == 0, afterwards["evaluated"].stderr[-3000:]
    expected = read_lines(straight / "eval.jsonl")[-1]["perplexity"]
    found = read_json(straight / "model" / "evaluation.json")
    assert found["perplexity"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("run", ["straight", "two_ranks"])
def test_a_checkpoint_is_evaluated_as_the_model_that_came_of_it(run, request, afterwards):
    folder = request.getfixturevalue(run)
    assert afterwards[folder].returncode == 0, afterwards[folder].stderr[-3000:]
    found, expected = (
        read_json(folder / "evaluation-pretrain-step-00000010.json"),
        read_lines(folder / "eval.jsonl")[-1],
    )
    assert set(found) == {"perplexity", "bits_per_byte", "by_word", "similarity"}
    files = {path for path in afterwards["files"] if path.parent == folder / STEP_10}
    assert files and files == set((folder / STEP_10).iterdir())
    assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    ours, theirs = (record["similarity"]["clone"]["held_in"] for record in (found, expected))
    assert ours["cosine"] == pytest.approx(theirs["cosine"], rel=1e-4) and ours["n"] == theirs["n"]


def test_evaluations_do_not_depend_on_the_ranks_and_the_zero_stage(straight, two_ranks):
    for one, two in zip(*(read_lines(run / "eval.jsonl") for run in (straight, two_ranks)), strict=True):
        assert one.keys() == two.keys() >= {"perplexity", "by_word", "similarity", "leakage"}
        assert one["leakage"] == two["leakage"] and one["leakage"]["clone"]["n"] == 5
        ours, theirs = (record["similarity"]["clone"]["held_in"] for record in (one, two))
        assert ours["cosine"] == pytest.approx(theirs["cosine"], rel=1e-4)
        assert ours["p_at_1"]["to_target"] == pytest.approx(theirs["p_at_1"]["to_target"], abs=0.06)


def test_losses_and_weights_do_not_depend_on_the_ranks_and_the_zero_stage(straight, two_ranks):
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (straight, two_ranks))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-4) for name in ours)
    assert len(list((two_ranks / "tensorboard").rglob("events*"))) == 2
    for key in ("loss", "learning_rate", "gradient_norm"):
        for one, two in zip(series(straight, key), series(two_ranks, key), strict=True):
            assert two[:2] == one[:2] and two[2] == pytest.approx(one[2], rel=1e-5), key
    for one, two in zip(read_lines(straight / "metrics.jsonl"), read_lines(two_ranks / "metrics.jsonl"), strict=True):
        for key in ("codeswitch_rate", "alignment_loss", "aligned_cosine", "random_cosine"):
            assert (key in one) == (key in two)
            if key in one:
                assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-6)


def test_what_goes_beyond_the_paper_does_not_depend_on_the_ranks_either(data, straight):
    one, two = (read_lines(data / name / "metrics.jsonl") for name in ("beyond", "beyond2"))
    aligned = [(record["stage"], record["step"]) for record in one if "alignment_loss" in record]
    assert aligned == [("align", n) for n in range(1, 11)] + [("pretrain", n) for n in (1, 5, 9)]
    measured = [(record["stage"], record["step"]) for record in one if "gradient_cosine" in record]
    assert measured == [("align", n) for n in range(1, 11, 2)] + [("pretrain", n) for n in (1, 5, 9)]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("loss", "alignment_loss", "codeswitch_rate", "gradient_cosine", "gradient_ratio"):
            if key in ours:
                assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-6), key
        if "gradient_cosine" in ours:
            assert theirs["gradient_cosine_by_layer"] == pytest.approx(ours["gradient_cosine_by_layer"], abs=1e-4)
            assert -1 < ours["gradient_cosine"] < 1 and ours["gradient_ratio"] > 0
    assert series(data / "beyond")[:10] == series(straight)[:10], "to measure changes no step"


def test_a_run_killed_in_both_stages_goes_on_and_ends_in_the_same_weights(data, two_ranks):
    folder = data / "killed"
    words = [2, PRETRAIN, data / "recipe.yaml", f"run_dir={folder}", ZERO3]
    by_launcher = deepspeed_command(*words)
    for stage, command in (("align", by_launcher), ("pretrain", forked_command(*words))):
        process = start(command, 2, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not ((folder / "metrics.jsonl").exists() and (stage, 6) in series(folder)):
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.05)
        kill(process)
        assert not (folder / "model").exists()
    port = by_launcher[by_launcher.index("--master_port") + 1]
    assert not list(Path("/dev/shm").glob(f"*_{port}_*")), "memory is left behind"
    launch_forked(*words)
    assert series(folder, "loss") == series(two_ranks, "loss")
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (folder, two_ranks))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_is_not_done_again(straight, afterwards):
    done, model = afterwards["again"], straight / "model" / "model.safetensors"
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("already done") + done.stdout.count("already done") == 2
    assert (straight / ".lock").is_file(), "a run claims its folder"
    assert model.stat().st_mtime_ns == afterwards["files"][model]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_errors_name_the_cause_and_leave_nothing_behind(data, afterwards, overrides, message):
    done = afterwards[message]
    assert done.returncode == 2 and message in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not list(data.glob("bad*")), "no run folder is left by a run that cannot start"
