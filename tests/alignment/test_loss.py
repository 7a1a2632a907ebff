"""Eq. 2 against pytorch-metric-learning, against a plain double loop, and the masks of a word batch."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss

from prealign_ds.alignment.batches import WordBatch, WordBatches
from prealign_ds.alignment.loss import layer_alignments
from prealign_ds.alignment.rows import TableRows
from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable


def batch_of_labels(labels):
    """A word batch in which equal labels are positives of each other and all else is negative."""
    same = labels[:, None] == labels[None, :]
    own = torch.eye(len(labels), dtype=torch.bool)
    anchors, positives = torch.nonzero(same & ~own, as_tuple=True)
    number = (same & ~own).sum(1)
    return WordBatch(
        input_ids_rT=torch.zeros(len(labels), 1, dtype=torch.int64),
        mask_rT=torch.ones(len(labels), 1, dtype=torch.int64),
        groups=[(0, len(labels), 1)],
        counts=[len(labels)],
        positives=(anchors, positives),
        num_positives_R=number,
        excluded=torch.nonzero(own, as_tuple=True),
        num_anchors=int((number > 0).sum()),
        num_positives=len(anchors),
    )


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_layer_loss_equals_supcon_of_pytorch_metric_learning(temperature):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40)[torch.randperm(40, generator=generator)] % 12
    ours = torch.randn(40, 16, generator=generator, dtype=torch.float32, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    batch = batch_of_labels(labels)
    loss = layer_alignments([ours], batch, temperature).losses_L.sum() / batch.num_anchors
    expected = SupConLoss(temperature=temperature)(theirs, labels)
    assert batch.num_anchors == 40, "metric-learning averages over all rows; here each one has a positive"
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def rows_of(tokenizer, pairs, held_out=(), **options):
    table = AlignmentTable.from_pairs(None, [Pair(*pair, "test") for pair in pairs])
    for word in held_out:
        table.edge_held_out[table.edges_of(table.lookup(word))] = True
    return TableRows(table, tokenizer, **options)


def ids_of(rows, batch):
    """The row behind each place of a whole batch."""
    known = {tuple(rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].tolist()): i for i in range(len(rows))}
    words = zip(batch.input_ids_rT.tolist(), batch.mask_rT.sum(1).tolist(), strict=True)
    return [known[tuple(word[:length])] for word, length in words]


def names(rows, tokenizer, ids):
    return [tokenizer.decode(rows.tokens[rows.offsets[i] : rows.offsets[i + 1]]) for i in ids]


def set_of(pairs):
    return set(zip(*(part.tolist() for part in pairs), strict=True))


BANK = [("bank", "de", "Ufer"), ("shore", "de", "Ufer"), ("bank", "ru", "банк"), ("bank", "de", "Bank")]


def slow_loss(states, names_, edges, held_out, temperature):
    """Eq. 2 as PAPER.md decides, in two loops over Python floats."""
    units = [vector / np.linalg.norm(vector) for vector in states.double().numpy()]
    cosine = {(a, b): float(units[i] @ units[j]) for i, a in enumerate(names_) for j, b in enumerate(names_)}
    linked = {frozenset(edge) for edge in edges}
    known = linked | {frozenset(edge) for edge in held_out}
    everything = {name for edge in known for name in edge}

    def neutral(a, b):
        if frozenset((a, b)) in linked:
            return False
        common = any(frozenset((a, c)) in known and frozenset((c, b)) in known for c in everything)
        return common or frozenset((a, b)) in known

    losses = []
    for anchor in names_:
        positives = [other for other in names_ if frozenset((anchor, other)) in linked]
        if not positives:
            continue
        denominator = sum(
            math.exp(cosine[anchor, other] / temperature)
            for other in names_
            if other != anchor and not neutral(anchor, other)
        )
        losses.append(np.mean([math.log(denominator) - cosine[anchor, p] / temperature for p in positives]))
    return float(np.mean(losses))


@pytest.mark.parametrize("held_out", [[], ["house"]])
def test_loss_equals_two_loops_with_shared_neighbours_and_held_out_pairs_masked(tokenizer, held_out):
    pairs = [
        *BANK,
        ("piano", "de", "Klavier"),
        ("house", "de", "Klavier"),
        ("river", "ru", "река"),
        ("old", "de", "Bank"),
    ]
    rows = rows_of(tokenizer, pairs, held_out)
    batch = WordBatches(rows, 10, 3, seed=0).batch(0)
    ids = ids_of(rows, batch)
    shown = names(rows, tokenizer, ids)
    kept = [(f" {w}", f" {t}") for w, _, t in pairs if w not in held_out]
    dropped = [(f" {w}", f" {t}") for w, _, t in pairs if w in held_out]
    states = torch.randn(len(ids), 8, generator=torch.Generator().manual_seed(1))
    loss = layer_alignments([states], batch, 0.1).losses_L.sum() / batch.num_anchors
    assert loss.item() == pytest.approx(slow_loss(states, shown, kept, dropped, 0.1), rel=1e-5)
    assert (" house" in shown) == (not held_out)


def test_bank_and_shore_are_both_positives_of_the_one_row_ufer_and_neutral_to_each_other(tokenizer):
    rows = rows_of(tokenizer, BANK)
    batch = WordBatches(rows, 5, 5, 0).batch(0)
    shown = names(rows, tokenizer, ids_of(rows, batch))
    place = {name: index for index, name in enumerate(shown)}
    pairs, excluded = set_of(batch.positives), set_of(batch.excluded)
    assert shown.count(" Ufer") == 1
    assert (place[" Ufer"], place[" bank"]) in pairs and (place[" Ufer"], place[" shore"]) in pairs
    assert (place[" bank"], place[" shore"]) in excluded
    assert (place[" Ufer"], place[" банк"]) in excluded, "translations of one word are neither"
    assert (place[" shore"], place[" Bank"]) not in excluded, "two steps away only over bank: a negative"


def test_a_shared_neighbour_counts_even_when_it_is_not_in_the_batch(tokenizer):
    pairs = [("bank", "de", "Ufer"), ("shore", "de", "Ufer"), ("bank", "de", "Bank"), ("shore", "de", "Strand")]
    rows = rows_of(tokenizer, pairs)
    batches = WordBatches(rows, 2, 1, seed=0)
    for step in range(50):
        batch = batches.batch(step)
        shown = names(rows, tokenizer, ids_of(rows, batch))
        if " Ufer" not in shown:
            assert (shown.index(" bank"), shown.index(" shore")) in set_of(batch.excluded)
            return
    raise AssertionError("no batch without Ufer was drawn")


def test_entry_positives_join_all_rows_of_an_entry(tokenizer):
    rows = rows_of(tokenizer, [("bank", "de", "Ufer"), ("bank", "ru", "банк")], positives="entry")
    batch = WordBatches(rows, 1, 1, 0).batch(0)
    assert batch.num_positives == 6 and len(batch.excluded[0]) == 3


def test_pairs_with_the_same_tokens_are_dropped_and_counted(tokenizer):
    # NFC and NFD look the same; here the table holds a word and itself through another language's spelling
    rows = rows_of(tokenizer, [("piano", "de", "Klavier"), ("Klavier", "en", "piano"), ("a", "zh", "钢琴")])
    assert rows.num_identical == 0 and rows.num_unspellable == 0
    same = AlignmentTable.from_pairs(None, [Pair("piano", "de", "Klavier", "t"), Pair("old", "de", "alt", "t")])
    same.edge_text[same.edges_of(same.lookup("piano")).start] = "piano"
    assert TableRows(same, tokenizer).num_identical == 1


def test_chinese_is_encoded_bare_with_the_spaced_form_as_a_second_row(tokenizer):
    rows = rows_of(tokenizer, [("piano", "zh", "钢琴")])
    assert names(rows, tokenizer, range(len(rows))) == [" piano", "钢琴", " 钢琴"]
    assert rows.pairs.tolist() == [[0, 1], [0, 2]]


def test_word_batches_visit_every_word_once_an_epoch_and_share_rows_over_ranks(tokenizer):
    pairs = [(f"{a}{b}", "de", f"{b}{a}x") for a in "abcdefg" for b in "hijkl"]
    rows = rows_of(tokenizer, pairs)
    batches = WordBatches(rows, 7, 1, seed=4)
    seen = np.concatenate([batches.entries(step) for step in range(5)])
    assert sorted(seen) == list(range(35))
    assert not np.array_equal(batches.entries(0), batches.entries(5)), "a new order in the next epoch"
    whole = batches.batch(3)
    expected = pair_names(rows, whole, ids_of(rows, whole), 0)
    for world in (2, 3, 4):
        shares = [batches.batch(3, rank, world) for rank in range(world)]
        columns = [row for share in shares for row in ids_of(rows, share)]
        low = np.cumsum([0, *shares[0].counts])
        found = [pair_names(rows, share, columns, first) for share, first in zip(shares, low, strict=False)]
        assert sorted(columns) == sorted(ids_of(rows, whole))
        assert shares[0].counts == [len(share.input_ids_rT) for share in shares]
        assert all(share.num_anchors == whole.num_anchors for share in shares)
        assert all(share.num_positives == whole.num_positives for share in shares)
        assert all(len(share.groups) == len(shares[0].groups) for share in shares)
        assert tuple(set().union(*parts) for parts in zip(*found, strict=True)) == expected


def test_a_languages_weight_is_the_share_of_words_that_it_takes_part_in(tokenizer):
    words = [f"{a}{b}" for a in "abcdefghijklmnop" for b in "abcdefghijklmnop"]
    rows = rows_of(
        tokenizer, [(word, code, f"{word}{end}") for word in words for code, end in (("de", "x"), ("ru", "y"))]
    )
    weighed = WordBatches(rows, 256, 1, seed=4, language_weights={"ru": 0.25})
    counts = []
    for step in range(20):
        shown = [name for name in names(rows, tokenizer, weighed.row_ids(step))]
        counts.append(sum(name.endswith("y") and len(name) == 4 for name in shown))
        assert sum(name.endswith("x") and len(name) == 4 for name in shown) == 256
        assert np.array_equal(weighed.row_ids(step), weighed.row_ids(step))
    assert np.mean(counts) / 256 == pytest.approx(0.25, abs=0.03) and len(set(counts)) > 1
    assert len(WordBatches(rows, 256, 1, 4, {"ru": 0.0}).row_ids(0)) == 512
    with pytest.raises(ValueError, match=r"align.language_weights: \['fr'\] are not of the table's languages"):
        WordBatches(rows, 256, 1, 4, {"fr": 0.5})


def pair_names(rows, batch, columns, first):
    """(positive pairs, excluded pairs) of a share, as row ids."""
    return tuple(
        {(columns[first + row], columns[column]) for row, column in set_of(pairs)}
        for pairs in (batch.positives, batch.excluded)
    )


def test_too_few_rows_for_the_ranks_are_refused(tokenizer):
    with pytest.raises(ValueError, match="2 rows cannot be shared by 3 ranks"):
        WordBatches(rows_of(tokenizer, [("piano", "de", "Klavier")]), 1, 1, 0).batch(0, 0, 3)
