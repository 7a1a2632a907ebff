"""Evaluations do not depend on the number of ranks, nor on the engine around the model."""

import json
import sys

import pytest
import torch
from conftest import write_labelled
from launching import finish, free_port, launch_each, launch_forked, run_alone, start
from worker_evaluations import evaluate, new_model, transfer


def test_two_ranks_under_zero_3_find_what_one_process_finds(tokenizer, tmp_path):
    train, test = write_labelled(tmp_path / "train.tsv", 120, 0, 0.3), write_labelled(tmp_path / "test.tsv", 75, 1, 0.3)
    launch_forked(2, "tests/distributed/worker_evaluations.py", tmp_path / "found.json", train, test)
    found = json.loads((tmp_path / "found.json").read_text())
    model = new_model(tokenizer)
    expected = evaluate(tokenizer, lambda task: task(model), model, "cpu")
    for name, split in expected["similarity"]["clone"].items():
        other = found["similarity"]["clone"][name]
        assert other["cosine"] == pytest.approx(split["cosine"], abs=1e-5)
        assert other["random"] == pytest.approx(split["random"], abs=1e-5)
        for direction, shares in split["p_at_1"].items():
            assert other["p_at_1"][direction] == pytest.approx(shares, abs=0.02)
        assert other["n"] == split["n"] and other["n"]["words"] > 5
    assert found["leakage"] == expected["leakage"] and expected["leakage"]["clone"]["leaks"] > 0
    assert_same_accuracy(found["transfer"], transfer(tokenizer, model, train, test))


def assert_same_accuracy(found, expected):
    """The same up to a text or two whose logits are nearly equal."""
    assert {key: found[key] for key in ("labels", "seeds", "train")} == {
        key: expected[key] for key in ("labels", "seeds", "train")
    }
    for language, result in expected["accuracy"].items():
        assert found["accuracy"][language]["per_seed"] == pytest.approx(result["per_seed"], abs=2.5 / result["n"])
        assert found["accuracy"][language]["n"] == result["n"]


def test_finetune_alone_and_by_accelerate_launch(tokenizer, tmp_path):
    model = new_model(tokenizer)
    with torch.no_grad():
        model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    train, test = write_labelled(tmp_path / "train.tsv", 120, 0, 0.3), write_labelled(tmp_path / "test.tsv", 75, 1, 0.3)
    arguments = ["--model", tmp_path / "model", "--train", train, "--test", f"en={test}", f"clone={test}", "ar=-"]
    arguments += ["--set", "seeds=[1,2]", "epochs=2", "batch_size=16", "learning_rate=0.001"]
    alone = run_alone("launchers/finetune.py", *arguments)
    assert alone.returncode == 0, alone.stderr[-3000:]
    lines = alone.stdout.splitlines()
    assert lines[0].startswith("en ") and "±" in lines[0] and lines[2].split() == ["ar", "-"]
    expected = json.loads((tmp_path / "model/transfer.json").read_text())
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "--num_machines", 1]
    command += ["--main_process_port", free_port(), "launchers/finetune.py", *arguments]
    together = finish(start([*command, "--output", tmp_path / "two.json"], ranks=2))
    assert together.returncode == 0, together.stderr[-3000:]
    found = json.loads((tmp_path / "two.json").read_text())
    expected["accuracy"].pop("ar"), found["accuracy"].pop("ar")
    assert_same_accuracy(found, expected)


MISTAKES = [
    (["--model", "absent", "--train", "a.tsv", "--test", "en=a.tsv"], "absent: no config.json here"),
    (["--model", ".", "--train", "a.tsv", "--test", "en"], "--test 'en': write LANGUAGE=FILE"),
    (
        ["--model", ".", "--train", "a.tsv", "--test", "en=a.tsv", "--set", "epoch=3"],
        "epoch: unknown key; did you mean 'epochs'",
    ),
]


@pytest.fixture(scope="module")
def mistakes():
    """What each is answered, from one start."""
    done = launch_each(*((1, "launchers/finetune.py", *arguments) for arguments, _ in MISTAKES), check=False)
    return dict(zip((message for _, message in MISTAKES), done, strict=True))


@pytest.mark.parametrize("message", [message for _, message in MISTAKES])
def test_mistakes_on_the_command_line(mistakes, message):
    done = mistakes[message]
    assert done.returncode == 2 and message in done.stderr, done.stderr[-2000:]
