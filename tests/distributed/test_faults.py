"""Stopped, killed, moved and starved runs end as if nothing had happened, or say what to do."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from building import build_data, read_lines, write_recipe
from launching import REPOSITORY, launch
from safetensors.torch import load_file

from prealign_ds.files import read_json, write_json

PRETRAIN, STOPS = "launchers/pretrain.py", "tests/distributed/worker_stops.py"


def engine(zero):
    return f"deepspeed=tests/distributed/zero{zero}_fp32.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    build_data(folder)
    write_recipe(folder)
    return folder


def run_scenarios(data, ranks, scenarios):
    write_json(data / "scenarios.json", [[str(data / name), overrides, stops] for name, overrides, stops in scenarios])
    launch(ranks, STOPS, data / "recipe.yaml", data / "scenarios.json")


def losses(run):
    return [
        (r["stage"], r["step"], r["samples"], r["loss"], r["learning_rate"]) for r in read_lines(run / "metrics.jsonl")
    ]


def assert_same_run(found, expected):
    assert losses(found) == losses(expected)
    assert read_lines(found / "eval.jsonl") == read_lines(expected / "eval.jsonl")
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (found, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def assert_close_run(found, expected):
    ours, theirs = losses(found), losses(expected)
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    assert [row[3] for row in ours] == pytest.approx([row[3] for row in theirs], rel=1e-5)


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_one_rank_stops_all_and_nothing_changes(data, ranks):
    """Stops in both stages, and in an evaluation (the ninth question or so), under every ZeRO stage."""
    scenarios = []
    for zero in range(4):
        scenarios += [(f"straight{ranks}-{zero}", [engine(zero), "log.every_steps=3"], [])]
        scenarios += [(f"stopped{ranks}-{zero}", [engine(zero), "log.every_steps=3"], [4, 4, 7, 9])]
    run_scenarios(data, ranks, scenarios)
    for zero in range(4):
        assert_same_run(data / f"stopped{ranks}-{zero}", data / f"straight{ranks}-{zero}")


@pytest.mark.faults
def test_another_world_or_zero_stage_goes_on_in_both_stages(data):
    """Each run begins under one layout and is finished under another, twice."""
    run_scenarios(data, 2, [("whole", [engine(1)], [])])
    moves = {"a": [(2, 1), (1, 1), (2, 1)], "b": [(2, 1), (2, 3), (1, 1)], "c": [(1, 3), (2, 1), (2, 2)]}
    moves["d"] = [(2, 0), (1, 0), (2, 0)]
    for name, layouts in moves.items():
        for (ranks, zero), stop in zip(layouts, ([4], [12], []), strict=True):
            write_json(data / "scenarios.json", [[str(data / name), [engine(zero)], stop]])
            worker = [STOPS, data / "recipe.yaml", data / "scenarios.json"]
            launch(ranks, *worker, *(["--stop-here"] if stop else []))
        assert_close_run(data / name, data / "whole")


@pytest.mark.faults
def test_a_changed_batch_size_goes_on_with_the_next_sample(data):
    write_json(data / "scenarios.json", [[str(data / "batch"), [engine(1)], [4]]])
    launch(1, STOPS, data / "recipe.yaml", data / "scenarios.json", "--stop-here")
    launch(1, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/batch", engine(1), "pretrain.batch_tokens=384")
    samples = [0, *(row[2] for row in losses(data / "batch"))]
    begun = samples.index(read_json(next((data / "batch/checkpoints/align").glob("*/manifest.json")))["sample"])
    assert samples == sorted(set(samples)) and samples[-1] == 160 and 80 in samples
    assert {b - a for a, b in zip(samples[:begun], samples[1 : begun + 1], strict=True)} <= {8, 12}


@pytest.mark.faults
def test_twenty_kills_at_random_moments_change_nothing(data):
    run_scenarios(data, 2, [("unkilled", [engine(2)], [])])
    folder, draw = data / "killed", random.Random(3)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", PRETRAIN]
    command += [str(data / "recipe.yaml"), f"run_dir={folder}", engine(2), "checkpoint.every_tokens=256"]
    kills = 0
    while not (folder / "model").exists():
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        known = len(list(folder.rglob("manifest.json")))
        while kills < 20 and process.poll() is None and len(list(folder.rglob("*.pt"))) == 0 and known == 0:
            time.sleep(0.05)
        time.sleep(draw.uniform(8, 14) if kills < 20 else 0)
        if kills < 20 and process.poll() is None:
            subprocess.run(["pkill", "-9", "-f", f"run_dir={folder}"], check=False)
            kills += 1
        process.wait()
    ours, theirs = losses(folder), losses(data / "unkilled")
    assert ours == theirs and kills > 0


def test_damaged_checkpoints_name_the_file_and_delete_nothing(data):
    run_scenarios(data, 1, [("damaged", [engine(1)], [])])
    shutil.rmtree(data / "damaged" / "model")
    folder = data / "damaged" / "checkpoints" / "pretrain" / "step-00000010"
    weights = next(folder.glob("*_optim_states.pt"))
    whole, manifest = weights.read_bytes(), (folder / "manifest.json").read_text()
    command = [sys.executable, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/damaged", engine(1)]

    def message(*more):
        done = subprocess.run([*command, *more], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert folder.is_dir()
        return done.stderr

    weights.write_bytes(whole[:-100])
    assert f"{weights}: {len(whole) - 100} bytes, {len(whole)} were written" in message()
    weights.unlink()
    assert f"{weights}: missing" in message()
    weights.write_bytes(whole[::-1])
    assert f"{weights}: other content than was written" in message()
    weights.write_bytes(whole)
    (folder / "manifest.json").write_text(json.dumps(json.loads(manifest) | {"step": 9}))
    assert "manifest.json: changed since it was written" in message()
    (folder / "manifest.json").write_text(manifest)
    assert "stages 1, 2 and 3 can be exchanged, 0 only resumes 0" in message(engine(0))
    assert "checkpoint.accept_other_data=true" in message("codeswitch.ratio=0.3")
    assert "no config.yaml, so it is not the folder of a run" in message(f"run_dir={data}/tokens")


def test_a_full_disk_leaves_the_last_checkpoint_usable(data):
    disk = data / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk]).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        command = [sys.executable, PRETRAIN, data / "recipe.yaml", f"run_dir={disk}/run", engine(1)]
        command += ["checkpoint.every_tokens=256", "checkpoint.keep=5"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert "the last complete one is step-0000000" in done.stderr and "make room" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0 and "resumed after step" in done.stderr, done.stderr[-3000:]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_sigterm_through_the_launcher_saves_and_exits_with_85(data):
    folder, mark = data / "signalled", data / "mark.json"
    command = [sys.executable, PRETRAIN, data / "recipe.yaml", f"run_dir={folder}", engine(1), "lm_tokens=2M"]
    process = subprocess.Popen(
        [*command, "--preempted-file", mark], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 85 and read_json(mark)["exit_code"] == 85
    manifest = read_json(sorted((folder / "checkpoints/align").glob("*/manifest.json"))[-1])
    assert losses(folder)[-1][1] == manifest["step"] and not (folder / "model").exists()
