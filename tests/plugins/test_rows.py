"""Rows for other trainers: targets are never switched, and nothing but the index decides a row."""

import numpy as np
import pytest
import torch
from plugging import Data, build_plug_data, digest, one_thread
from torch.utils.data import DataLoader, DistributedSampler

from prealign_ds.plugins.rows import CodeSwitchedRows, StreamRows
from prealign_ds.stream.stream import CodeSwitchedStream, StreamCorpus


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    one_thread()
    return Data(build_plug_data(tmp_path_factory.mktemp("data")))


def stream(data, switcher, length=31):
    return CodeSwitchedStream([StreamCorpus("en", "en", data.tokens, 1.0, True, "")], length, 7, switcher, 0.3)


def targets(row):
    return [token for token in row["labels"].tolist() if token != -100]


def is_subsequence(part, whole):
    whole = iter(whole)
    return all(token in whole for token in part)


def test_without_switches_a_row_is_itself(data):
    rows = data.rows()
    for row, plain in zip(CodeSwitchedRows(rows, data.switcher, ratio=0.0), rows, strict=True):
        assert row["input_ids"].tolist() == plain.tolist()
        assert row["labels"].tolist() == [-100, *plain[1:].tolist()]


def test_inputs_are_switched_and_targets_are_not(data):
    rows = data.rows(number=60)
    differ = 0
    for row, plain in zip(CodeSwitchedRows(rows, data.switcher, ratio=0.3), rows, strict=True):
        assert len(row["input_ids"]) == len(row["labels"]) == len(plain)
        assert is_subsequence(targets(row), plain[1:].tolist())
        differ += row["input_ids"].tolist() != plain.tolist()
    assert differ > 50


def test_each_pass_has_its_switches_and_its_order_and_reads_every_row_once(data):
    rows = CodeSwitchedRows(data.rows(), data.switcher, 0.3, seed=5, passes=3, shuffle=True)
    places = [rows.locate(index) for index in range(len(rows))]
    assert sorted(places) == [(turn, place) for turn in range(3) for place in range(40)]
    orders = [[place for turn, place in places if turn == wanted] for wanted in range(3)]
    assert orders[0] != orders[1] != orders[2]
    row = [rows[places.index((turn, 4))]["input_ids"].tolist() for turn in range(3)]
    assert row[0] != row[1] or row[1] != row[2]


def test_the_rate_is_the_ratio(data):
    rows = CodeSwitchedRows(data.rows(number=380), data.switcher, 0.05, passes=5)
    done = [rows.switched(index) for index in range(len(rows))]
    words, drawn = (sum(getattr(sample, name) for sample in done) for name in ("num_words", "num_drawn"))
    assert words > 10_000 and abs(drawn / words - 0.05) < 0.01


def test_rows_come_as_arrays_tensors_and_mappings(data):
    plain = data.rows()
    others = [torch.from_numpy(row.astype(np.int64)) for row in plain], [{"input_ids": row.tolist()} for row in plain]
    expected = digest(CodeSwitchedRows(plain, data.switcher, 0.3))
    assert all(digest(CodeSwitchedRows(rows, data.switcher, 0.3)) == expected for rows in others)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input_ids": [3, 4, 0], "attention_mask": [1, 1, 0]}, "row 0 is padded"),
        ({"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}, "row 0: its labels"),
        ([[3, 4, 5]], "row 0 has shape"),
    ],
)
def test_what_is_no_plain_row_is_named(data, row, says):
    with pytest.raises(ValueError, match=says):
        CodeSwitchedRows([row], data.switcher)[0]
    with pytest.raises(ValueError, match="0 rows"):
        CodeSwitchedRows([], data.switcher)


def test_stream_rows_are_the_samples(data):
    samples = stream(data, data.switcher)
    rows = StreamRows(samples, 10, 30)
    assert len(list(rows)) == 20
    for index, row in enumerate(rows):
        sample = samples[10 + index]
        assert row["input_ids"][:-1].tolist() == sample.input_ids.tolist()
        assert row["labels"].tolist() == [-100, *sample.targets.tolist()]
    with pytest.raises(ValueError, match="no samples"):
        StreamRows(samples, 3, 3)


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_workers_ranks_and_resuming_change_nothing(data, kind):
    if kind == "rows":
        rows = CodeSwitchedRows(data.rows(), data.switcher, 0.3, passes=2, shuffle=True)
    else:
        rows = StreamRows(stream(data, data.switcher), 0, 80)
    alone = list(DataLoader(rows, batch_size=4))
    assert digest(alone) == digest(DataLoader(rows, batch_size=4, num_workers=2))
    shares = [
        list(DataLoader(rows, batch_size=2, sampler=DistributedSampler(rows, 2, rank, shuffle=False)))
        for rank in range(2)
    ]
    dealt = [share[step]["input_ids"][place] for step in range(20) for place in range(2) for share in shares]
    assert torch.equal(torch.stack(dealt), torch.cat([batch["input_ids"] for batch in alone]))
    resumed = torch.utils.data.Subset(rows, range(28, 80))
    assert digest(DataLoader(resumed, batch_size=4)) == digest(alone[7:])
