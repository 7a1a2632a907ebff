"""lm-evaluation-harness on an exported model: the tasks that a run writes, and the numbers of our own evaluation."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from building import build_data, read_lines, write_recipe
from conftest import REPOSITORY, STYLES, Row, make_text
from launching import deepspeed_command, finish, start

from prealign_ds.evaluation.scoring import row_nats
from prealign_ds.exporting.harness import commands, write_tasks
from prealign_ds.recipe import load_settings
from prealign_ds.training.environment import World
from prealign_ds.training.run import Run
from tools import export_hf, harness_tasks

HERE = World(0, 1, torch.device("cpu"))
KNOWLEDGE = {"period_tokens": 96 * 160, "start_tokens": 0, "facts": 4, "frequencies": [1, 8]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    write_recipe(
        folder,
        sequence_length=96,
        stages=["pretrain"],
        lm_tokens=96 * 160,
        knowledge=KNOWLEDGE,
        pretrain={"batch_tokens": 96 * 16, "micro_batch_size": 16, "optimizer": {"learning_rate": 0.01}},
        evaluation={},
        checkpoint={},
    )
    return folder


def open_run(data, *overrides):
    return Run(load_settings(data / "recipe.yaml", list(overrides)), HERE)


def task(folder, name):
    """A task's settings, functions as text, and its documents."""
    text = (folder / f"{name}.yaml").read_text().replace("!function ", "")
    return yaml.safe_load(text), read_lines(folder / f"{name}.jsonl")


def test_a_run_writes_its_held_out_texts_and_questions(data, tmp_path):
    run = open_run(data)
    said = write_tasks(run, tmp_path / "tasks")
    assert said["prealign_text_en"] == f"{run.held_out['en'].num_tokens:,} tokens of en"
    directions = {f"prealign_facts_{told}_{asked}" for told in ("en", "clone") for asked in ("en", "clone")}
    assert set(said) == {"prealign_text_en", "prealign_text_clone", *directions}
    settings, (document,) = task(tmp_path / "tasks", "prealign_text_en")
    assert settings["tag"] == "prealign" and settings["dataset_kwargs"] == {"file": "prealign_text_en.jsonl"}
    assert run.tokenizer(document["text"])["input_ids"] == run.held_out["en"].read(0, document["tokens"]).tolist()
    texts = "".join(make_text(400, 2 + 7 * number) for number in range(2))
    assert document["text"].replace("<|endoftext|>", "") == texts and document["bytes"] == len(texts.encode())
    settings, (clone,) = task(tmp_path / "tasks", "prealign_text_clone")
    assert settings["tag"] == "prealign_clone" and clone == document
    settings, questions = task(tmp_path / "tasks", "prealign_facts_en_clone")
    assert settings["tag"] == "prealign_clone" and len(questions) == 8
    assert all(question["choices"][question["answer"]] == question["choices"][-1] for question in questions)
    plain, other = commands(run, tmp_path / "tasks")
    assert "pretrained=EXPORTED --tasks prealign " in plain and "tokenizer=EXPORTED/clone --tasks prealign_cl" in other
    with pytest.raises(ValueError, match="--output .*tasks: exists"):
        write_tasks(run, tmp_path / "tasks")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("most", [0, 301, 302, 303, 304, 305])
def test_a_text_is_read_back_token_by_token_wherever_it_is_cut(data, tmp_path, style, most):
    run, tokenizer = open_run(data, f"evaluation.max_tokens={most}", "knowledge=null"), STYLES[style]()
    texts = [make_text(200, seed).strip() + " naïve 東京 🚀" for seed in range(5)]
    if style == "sentencepiece":
        texts = [" ".join(make_text(200, seed).split()) for seed in range(5)]
    row = [t for text in texts for t in (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)]
    run.tokenizer, run.held_out = tokenizer, {"de": Row(row)}
    run.byte_lengths = np.ones(len(tokenizer), dtype=int)
    write_tasks(run, tmp_path / "tasks")
    _, (document,) = task(tmp_path / "tasks", "prealign_text_de")
    assert tokenizer.encode(document["text"], add_special_tokens=False) == row[: document["tokens"]]
    assert document["tokens"] == len(row) if most == 0 else most - 4 <= document["tokens"] <= most
    (command,) = commands(run, tmp_path / "tasks")
    assert ("prefix_token_id=2" in command) == (style == "sentencepiece")


def test_a_text_that_reads_back_otherwise_is_refused(data, tmp_path):
    run = open_run(data, "knowledge=null")
    run.held_out = {"en": Row(run.tokenizer.convert_tokens_to_ids([*"the", "Ġpiano"]))}
    with pytest.raises(ValueError, match="held-out text of en: token .* is another one when the text is read back"):
        write_tasks(run, tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()
    with pytest.raises(ValueError, match="neither data.held_out nor knowledge"):
        run.held_out = {}
        write_tasks(run, tmp_path / "tasks")


def called(capsys, monkeypatch, tool, *words):
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, words)])
    tool.main()
    return capsys.readouterr().out.splitlines()


def statements_of_harness(results):
    """The log-likelihood of each statement of each task of facts."""
    found = {}
    for file in results.rglob("samples_prealign_facts_*.jsonl"):
        for record in read_lines(file):
            pairs = zip(record["doc"]["choices"], record["filtered_resps"], strict=True)
            found |= {(file.name.split("_2")[0], text): float(resp[0]) for text, resp in pairs}
    return found


def statements_of_ours(folder):
    run = Run(load_settings(folder / "config.yaml"), HERE)
    model, plan, found = run.saved_model(folder / "model"), run.knowledge, {}
    for fact, rows in zip(plan.facts(0), plan.statements(0), strict=True):
        nats = row_nats(rows, plan.eos, lambda task: task(model), run.vocabulary, 4096, HERE.device)
        name = f"samples_prealign_facts_{fact.direction.told}_{fact.direction.asked}"
        texts = [run.tokenizer.decode([token % len(run.tokenizer) for token in row]) for row in rows]
        found |= {(name, text): -value for text, value in zip(texts, nats.tolist(), strict=True)}
    return found


@pytest.mark.harness
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_the_harness_finds_what_our_evaluation_finds(data, tmp_path, capsys, monkeypatch, architecture):
    """The commands that the tool prints, as they are; figures to five digits, answers exactly, and each statement."""
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(REPOSITORY)
    run, exported, tasks = tmp_path / "run", tmp_path / "exported", tmp_path / "tasks"
    words = [f"run_dir={run}", f"model.architecture={architecture}"]
    done = finish(start(deepspeed_command(1, "launchers/pretrain.py", data / "recipe.yaml", *words)))
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_lines(run / "eval.jsonl")
    ours = {f"prealign_text_{name}": bits for name, bits in found[-1]["bits_per_byte"].items()}
    (asked,) = [record["knowledge"]["0"] for record in found if "knowledge" in record]
    answers = {f"prealign_facts_{name.replace('->', '_')}": kinds["all"]["accuracy"] for name, kinds in asked.items()}
    called(capsys, monkeypatch, export_hf, run, "--output", exported)
    printed = called(capsys, monkeypatch, harness_tasks, run, "--output", tasks)
    for name, value in (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1"), ("HF_HOME", str(tmp_path / "cache"))):
        monkeypatch.setenv(name, value)
    theirs = {}
    for command in (line for line in printed if line.startswith("lm_eval")):
        words = shlex.split(command.replace("EXPORTED", str(exported)))
        options = ["--device", "cpu", "--batch_size", "16", "--output_path", tmp_path / "results", "--log_samples"]
        done = finish(start([Path(sys.executable).parent / words[0], *words[1:], *options]))
        assert done.returncode == 0, done.stderr[-3000:]
    for file in (tmp_path / "results").rglob("results_*.json"):
        theirs |= json.loads(file.read_text())["results"]
    assert theirs.keys() == ours.keys() | answers.keys() and len(answers) == 4
    assert {name: theirs[name]["bits_per_byte,none"] for name in ours} == pytest.approx(ours, rel=1e-5)
    perplexities = {f"prealign_text_{name}": value for name, value in found[-1]["perplexity"].items()}
    assert {name: theirs[name]["perplexity,none"] for name in ours} == pytest.approx(perplexities, rel=1e-5)
    assert {name: theirs[name]["acc,none"] for name in answers} == answers
    assert statements_of_harness(tmp_path / "results") == pytest.approx(statements_of_ours(run), abs=1e-3)
    with capsys.disabled():
        for name in sorted(theirs):
            kind = "bits_per_byte" if name in ours else "acc"
            print(f"{architecture} {name}: {kind} {(ours | answers)[name]:.7f}, {theirs[name][f'{kind},none']:.7f}")
