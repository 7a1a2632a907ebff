"""Trackers through DeepSpeed's monitor: CSV files of a real run, W&B's section, and what is refused."""

import csv
from pathlib import Path

import pytest
from building import build_data, read_lines, write_recipe
from launching import run_alone

from prealign_ds.config import LogSettings
from prealign_ds.recipe import load_settings
from prealign_ds.training.trackers import check_trackers, tracker_sections


def test_csv_files_hold_the_series_of_a_run(tmp_path):
    build_data(tmp_path)
    recipe = write_recipe(tmp_path, evaluation={}, checkpoint={})
    overrides = ["stages=[pretrain]", "lm_tokens=1280", "log.csv=true"]
    done = run_alone("launchers/pretrain.py", recipe, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    for name in ("loss", "learning_rate", "tokens_per_s", "codeswitch_rate"):
        with open(tmp_path / "run" / "csv" / f"pretrain_{name}.csv") as handle:
            head, *rows = csv.reader(handle)
        assert head == ["step", name]
        assert [(int(x), float(y)) for x, y in rows] == [(r["samples"], r[name]) for r in records]
    # A terminal is needed for the bar: a pipe gets the lines alone.
    assert "\r" not in done.stderr and done.stderr.count("loss ") == len(records) == 5


def test_sections_of_deepspeed():
    assert tracker_sections(LogSettings(), Path("runs/a"), "align") == {}
    wandb = {"project": "p", "team": "t"}
    settings = LogSettings(tensorboard=True, csv=True, wandb=wandb)
    assert tracker_sections(settings, Path("runs/a"), "align") == {
        "tensorboard": {"enabled": True, "output_path": "runs/a/tensorboard", "job_name": "align"},
        "csv_monitor": {"enabled": True, "output_path": "runs/a", "job_name": "csv"},
        "wandb": {"enabled": True, "project": "p", "team": "t", "group": "a"},
    }
    settings = LogSettings(wandb=wandb | {"group": "g"})
    assert tracker_sections(settings, Path("runs/a"), "align")["wandb"]["group"] == "g"


def test_wandb_is_checked_before_anything_else(tmp_path, monkeypatch):
    settings = LogSettings(wandb={"project": "p"})
    monkeypatch.setattr("prealign_ds.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="log.wandb: the package wandb is not installed; `pip install wandb`, or"):
        check_trackers(settings)
    check_trackers(LogSettings())
    monkeypatch.setattr("prealign_ds.training.trackers.find_spec", lambda name: True)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="log.wandb: no key; set the environment variable WANDB_API_KEY"):
        check_trackers(settings)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(settings)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    check_trackers(settings)


def test_keys_and_secrets_are_no_settings(tmp_path):
    recipe = write_recipe(tmp_path)
    overrides = ["log.wandb.project=p", "log.wandb.api_key=s3cr3t", "log.cvs=true"]
    with pytest.raises(ValueError) as found:
        load_settings(recipe, overrides)
    assert "log.wandb.api_key: unknown key" in str(found.value) and "s3cr3t" not in str(found.value)
    assert "log.cvs: unknown key; did you mean 'csv'?" in str(found.value)
    with pytest.raises(ValueError, match=r"log\.wandb\.project: missing"):
        load_settings(recipe, ["log.wandb={}"])
