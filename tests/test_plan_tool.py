"""tools/plan.py: the page, the JSON, the refusals, and a recipe whose data exists."""

import json

import pytest
from building import build_data, write_recipe
from conftest import REPOSITORY

from tools import plan


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    return write_recipe(folder, deepspeed=str(REPOSITORY / "ds_configs/zero1_bf16.json"))


@pytest.fixture
def plan_of(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr("sys.argv", ["plan.py", *map(str, words)])
        plan.main()
        return capsys.readouterr().out

    return call


def test_json_with_data_that_exists(plan_of, recipe):
    report = json.loads(plan_of(recipe, "--gpus", "H100", "--gpus-per-node", 2, "--json"))
    assert report["fits"] and report["proposals"] == [] and report["model"]["vocabulary"] == 800
    assert not any("tokenizer" in line or "rows" in line for line in report["assumptions"])
    align, pretrain = report["stages"]["align"], report["stages"]["pretrain"]
    assert align["word_visits"] > 0 and pretrain["word_visits"] is None
    assert align["lm_loss"] == "compiled" and align["memory_needed"] > sum(align["memory"].values())
    assert report["disk"]["checkpoint"] == 14 * report["model"]["parameters"]


def test_the_page_says_what_was_assumed(plan_of):
    page = plan_of("launchers/recipes/quickstart.yaml", "--gpus", "L40S", "--gpus-per-node", 1, "--vocab-size", 4096)
    assert "It fits." in page and "1 node(s) x 1 L40S-48, ds_configs/cpu.json (ZeRO 0, fp32 with bf16 autocast)" in page
    assert "vocabulary 8,192" in page and "a tokenizer of 4,096 tokens (--vocab-size)" in page
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "alignment", "buffers", "thousand tok"):
        assert f"\n  {part}" in page


def test_what_does_not_fit_is_printed_then_refused(monkeypatch, capsys, recipe):
    words = [recipe, "--gpus", "RTX4090", "--gpus-per-node", 1, "data.sequence_length=8192", "pretrain.batch_tokens=8M"]
    words += ["model.hidden_size=1024", "model.num_layers=4", "pretrain.micro_batch_size=64", "lm_tokens=1B"]
    words += ["pretrain.batch_tokens=8_388_608", "align.batch_tokens=65_536", "evaluation.batch_size=1"]
    monkeypatch.setattr("sys.argv", ["plan.py", *map(str, words)])
    with pytest.raises(ValueError, match=r"does not fit:\n  pretrain: .* GiB of each RTX4090-24 are needed and 23.5"):
        plan.main()
    page = capsys.readouterr().out
    (first, *_) = page.partition("These fit; append to the command:\n")[2].splitlines()
    assert "pretrain.micro_batch_size=" in first
    monkeypatch.setattr("sys.argv", ["plan.py", *map(str, words), *first.split()[:-2]])
    plan.main()
    assert "It fits." in capsys.readouterr().out


def test_impossible_batches_and_machines_are_refused(plan_of, recipe):
    with pytest.raises(ValueError, match=r"align.batch_tokens: .* samples, which 7 rank\(s\) cannot share"):
        plan_of(recipe, "--gpus", "H100", "--gpus-per-node", 7)
    with pytest.raises(ValueError, match="--nodes, --gpus-per-node: give 1 or more"):
        plan_of(recipe, "--gpus", "H100", "--nodes", 0)
    with pytest.raises(ValueError, match="deepspeed: nowhere.json does not exist"):
        plan_of(recipe, "--gpus", "H100", "deepspeed=nowhere.json")
