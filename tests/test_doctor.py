"""tools/doctor.py: the page and its JSON, what a recipe would meet, and that nothing is written."""

import json
import sys

import pytest
from building import build_data, write_recipe
from conftest import REPOSITORY

from prealign_ds.doctoring import machine
from prealign_ds.doctoring.machine import disk, examine, file_system, versions
from tools import doctor


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    return write_recipe(folder)


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["doctor.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            doctor.main()
        return end.value.code, capsys.readouterr().out

    return call


@pytest.fixture
def found(call):
    def found(*words):
        code, text = call(*words, "--json")
        findings = json.loads(text)
        assert code == int(any(finding["status"] == "problem" for finding in findings))
        assert all(finding["advice"] for finding in findings if finding["status"] != "ok")
        return {finding["part"]: finding for finding in findings}

    return found


def test_this_machine_is_ready_and_the_page_says_what_it_has(call):
    code, page = call()
    assert code == 0, page
    for part in (
        "ok       torch  ",
        "megatron-core",
        "CPU, ",
        "g++",
        "gloo, a group was made",
        "free at",
        "attention: sdpa",
    ):
        assert part in page, part
    assert " 0 problem(s)" in f" {page.splitlines()[-1]}"


def test_a_dry_run_meets_what_the_run_would_and_writes_nothing(found, recipe):
    before = {path: path.stat().st_mtime_ns for path in recipe.parent.rglob("*")}
    seen = found(recipe, "--dry-run", "--gpus", "H100", "--gpus-per-node", 2)
    assert {path: path.stat().st_mtime_ns for path in recipe.parent.rglob("*")} == before
    assert seen["align"]["text"].startswith("10 steps of 256 tokens on 2 rank(s): micro-batch 2 x accumulation 2")
    assert "800 ids in use, padded to 896" in seen["model"]["text"]
    assert "words switched" in seen["samples pretrain"]["text"] and "words" not in seen["samples align"]["text"]
    assert seen["words"]["status"] == "warning" and "raise align.words_per_step" in seen["words"]["advice"]
    assert seen["rates align"]["text"] == "2.00e-03 at step 1, 2.84e-03 at 2, 3.16e-04 at the last"
    assert seen["evaluations pretrain"]["text"] == "every 5.0 steps (2 times) and at the end"
    assert "of 79.1 GiB of each H100-80" in seen["memory align"]["text"]
    assert seen["kernels align"]["status"] == "ok"


@pytest.mark.parametrize(
    ("overrides", "part", "message"),
    [
        (["model.num_layer=3"], "recipe", "model.num_layer: unknown key; did you mean 'num_layers'?"),
        (["pretrain.batch_tokens=100"], "recipe", "not a multiple of data.sequence_length 32"),
        (["deepspeed=nowhere.json"], "recipe", "nowhere.json does not exist"),
        (["data.corpora.0.split=tran", "--dry-run"], "data", "no split 'tran'"),
        (["table.path=none.parquet", "--dry-run"], "data", "none.parquet: no such file"),
        (["model.start_from=nowhere", "--dry-run"], "model", "nowhere: no config.json here"),
        (
            ["--dry-run", "--gpus", "RTX4090", "data.sequence_length=8192", "lm_tokens=1B", "model.hidden_size=1024"]
            + ["pretrain.batch_tokens=8_388_608", "pretrain.micro_batch_size=64", "align.batch_tokens=65_536"],
            "memory",
            "of each RTX4090-24 are needed",
        ),
    ],
)
def test_mistakes_of_a_recipe_are_problems_with_advice(call, recipe, overrides, part, message):
    code, text = call(recipe, *overrides, "--json")
    problems = {
        finding["part"]: finding["text"] + finding["advice"]
        for finding in json.loads(text)
        if finding["status"] == "problem"
    }
    assert code == 1 and message in problems[part], problems


def test_packages_outside_their_range_and_bad_disks_are_found(tmp_path, monkeypatch):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = [\n    "numpy>=99",\n    "no-such-package>=1",\n    "torch>=2",\n]\n')
    monkeypatch.setattr(machine, "_PYPROJECT", project)
    seen = {finding.part: finding for finding in versions()}
    assert seen["numpy"].status == "problem" and seen["numpy"].advice == 'pip install "numpy>=99"'
    assert seen["no-such-package"].text == "not installed" and seen["torch"].status == "ok"
    (finding,) = disk(tmp_path / "not" / "there")
    assert str(tmp_path) in finding.text and file_system(tmp_path) in finding.text
    monkeypatch.setattr(machine, "file_system", lambda folder: "tmpfs")
    (finding,) = disk(tmp_path)
    assert finding.status == "warning" and "may be lost" in finding.advice

    def fails():
        yield finding
        raise ValueError("cannot\n  set this")

    assert [f.status for f in examine("part", fails)] == ["warning", "problem"]
    assert examine("part", fails)[1].advice == "set this"


def test_words_that_go_together_are_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["doctor.py", "--dry-run"])
    with pytest.raises(ValueError, match="name a recipe"):
        doctor.main()
