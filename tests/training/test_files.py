"""Logs and checkpoints on disk: atomic, rewindable, complete or not used."""

import json
import subprocess
import sys

import pytest
import torch

from prealign_ds.files import atomic_folder, atomic_write, claimed, read_json, write_json
from prealign_ds.training.checkpoint import Checkpoints
from prealign_ds.training.environment import World
from prealign_ds.training.monitor import Series, is_spike, progress_line


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), atomic_write(target) as handle:
        handle.write("half")
        raise RuntimeError
    assert read_json(target) == {"x": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupted_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    with atomic_folder(tmp_path / "f") as work:
        (work / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "f") as work:
        (work / "two").write_text("2")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f" / "one").read_text() == "1"
    with atomic_folder(tmp_path / "f") as work:
        (work / "two").write_text("2")
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["two"] and len(list(tmp_path.iterdir())) == 1


def test_bad_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="x.json: not a valid JSON file"):
        read_json(tmp_path / "x.json")


def test_series_rewinds_one_stage_and_skips_a_torn_line(tmp_path):
    series = Series(tmp_path / "metrics.jsonl")
    for stage, step in (("align", 1), ("align", 2), ("pretrain", 1), ("pretrain", 2), ("pretrain", 3)):
        series.append({"stage": stage, "step": step})
    with open(series.path, "a") as handle:
        handle.write('{"stage": "pretr')
    series.rewind("pretrain", 1)
    lines = [json.loads(line) for line in series.path.read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in lines] == [("align", 1), ("align", 2), ("pretrain", 1)]


def write_checkpoint(folder, step, tokens=0):
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "a").write_text("abc")
    checkpoints(folder)._complete(path, {"step": step, "tokens": tokens})
    return path


def checkpoints(folder, **kinds):
    return Checkpoints(folder, World(0, 1, torch.device("cpu")), **kinds)


def test_a_save_without_a_manifest_is_not_used(tmp_path, caplog):
    write_checkpoint(tmp_path, 3)
    (tmp_path / "step-00000004").mkdir()
    assert checkpoints(tmp_path).newest()["step"] == 3
    assert "step-00000004: a save that was interrupted" in caplog.text and (tmp_path / "step-00000004").is_dir()
    assert (tmp_path / "latest").read_text() == "step-00000003"


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    for step in range(1, 8):
        path = tmp_path / f"step-{step:08d}"
        path.mkdir()
        checkpoints(tmp_path, keep=1, keep_every=10)._complete(path, {"step": step, "tokens": 4 * step})
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("step-*")) == [3, 5, 7]


def test_a_checkpoint_needs_room(tmp_path):
    with pytest.raises(ValueError, match=r"takes about 1,000,000,000,000 MB.*no complete one yet; make room"):
        checkpoints(tmp_path)._make_room(tmp_path / "step-00000001", 10**18)


def test_a_jump_of_the_loss_is_a_spike_and_noise_is_not():
    quiet = [5.0 + 0.02 * (k % 3) for k in range(20)]
    assert is_spike(quiet, 5.6) and not is_spike(quiet, 5.1) and not is_spike(quiet[:5], 9.0)


def test_progress_line_is_one_short_line():
    record = {
        "stage": "align",
        "step": 3,
        "loss": 5.25,
        "alignment_loss": [1.0, 2.0],
        "aligned_cosine": [0.5, 0.7],
        "learning_rate": 1e-3,
        "tokens_per_s": 12345.6,
        "data_wait_ms": 0.12,
        "seconds_left": 3725,
    }
    assert progress_line(record, 10) == (
        "align 3/10  loss 5.2500  alignment 3.000  cosine 0.600  lr 1.00e-03  12,346 tokens/s  wait 0.1 ms  "
        "left 1:02:05"
    )


def test_a_claimed_folder_is_for_one_process_until_it_ends(tmp_path):
    folder = tmp_path / "run"
    holder = f"""
import pathlib, sys
from prealign_ds.files import claimed
with claimed(pathlib.Path({str(folder)!r}), "run"):
    print("mine", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(ValueError, match="run: another run works in this folder; wait for it, or stop it"):
            with claimed(folder, "run"):
                raise AssertionError("entered")
        other.kill()
    with claimed(folder, "run", wait_seconds=60):
        (folder / "result").touch()
    assert (folder / "result").exists()


def test_a_claim_that_came_to_nothing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "run", "run"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
