"""Labelled text: every kind of file, and every kind of bad row by its line."""

import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prealign_ds.evaluation.labelled import read_labelled

PAIRS = [{"label": 0, "premise": "A b.", "hypothesis": "c"}, {"label": 2, "premise": "d", "hypothesis": "e f"}]


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.tsv", bytes), ("a.tsv.gz", gzip.compress), ("a.TSV.xz", lzma.compress), ("a.tsv.zst", zstandard.compress)],
)
def test_tab_separated_text(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack("games\tA game.\n\nnet\tМодуль «сети» \n".encode()))
    found = read_labelled(tmp_path / name)
    assert found.labels == ["games", "net"] and found.lines == [1, 3]
    assert found.texts == [("A game.",), ("Модуль «сети» ",)]


def test_pairs_of_json_lines_and_parquet(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        found = read_labelled(tmp_path / name)
        assert found.labels == ["0", "2"] and found.texts == [("A b.", "c"), ("d", "e f")] and found.lines == [1, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "x\ty\nno tab here\n", r"a\.tsv:2: expected label<TAB>text, found 1 field"),
        ("a.tsv", "x\ty\n\nx\ty\tz\n", r"a\.tsv:3: .* found 3 field"),
        ("a.tsv", "\ty\n", r"a\.tsv:1: label ''"),
        ("a.tsv", "x\t \n", r"a\.tsv:1: text ' ': expected a text that is not empty"),
        ("a.tsv", "", r"a\.tsv: holds no labelled text"),
        ("a.jsonl", '{"label": "x", "text": "y"}\n{"label"', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]", r"a\.jsonl:1: expected an object, found list"),
        ("a.jsonl", '{"label": "x", "premise": "y"}', r"a\.jsonl:1: hypothesis None"),
        ("a.jsonl", '{"label": 1.5, "text": "y"}', r"a\.jsonl:1: label 1\.5"),
        ("a.jsonl", '{"label": true, "text": "y"}', r"a\.jsonl:1: label True"),
        ("a.jsonl", '{"label": "x", "text": 3}', r"a\.jsonl:1: text 3"),
        ("a.parquet", "no", r"a\.parquet: not a Parquet file"),
        ("a.csv", "x,y", r"a\.csv: unknown kind of file"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labelled(tmp_path / name)


def test_absent_files_and_unknown_labels_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.tsv: no such file"):
        read_labelled(tmp_path / "absent.tsv")
    (tmp_path / "train.tsv").write_text("a\tx\nb\ty\n")
    (tmp_path / "test.tsv").write_text("a\tx\n\nc\ty\nd\tz\n")
    train, test = (read_labelled(tmp_path / f"{name}.tsv") for name in ("train", "test"))
    train.check_labels(train)
    with pytest.raises(ValueError, match=r"test\.tsv:3: label 'c' does not occur in .*train\.tsv, which has a, b"):
        test.check_labels(train)
