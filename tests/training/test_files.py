"""Logs and checkpoints on disk: atomic, rewindable, complete or not used."""

import json

import pytest

from prealign_ds.files import atomic_folder, atomic_write, read_json, write_json
from prealign_ds.training.checkpoint import complete_checkpoints
from prealign_ds.training.monitor import Series, progress_line


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


def test_only_complete_checkpoints_count(tmp_path, caplog):
    for step, files, manifest in (
        (1, {"a": 3}, True),
        (2, {"a": 3}, False),  # the save was cut off
        (3, {"a": 2}, True),  # a file was cut short afterwards
        (4, {"a": 3, "b": 1}, True),  # a file is gone
        (5, {"a": 3}, True),
    ):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "a").write_text("abc"[: files["a"]])
        if manifest:
            expected = {name: 3 if name == "a" else size for name, size in files.items()}
            write_json(folder / "manifest.json", {"step": step, "files": expected})
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000001", "step-00000005"]
    assert caplog.text.count("incomplete save") == 3


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
