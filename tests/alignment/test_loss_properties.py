"""Eq. 2 in blocks, with its gradient made in the forward, against whole matrices by autograd."""

import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from launching import launch_each
from relations import EXCLUDED, NEGATIVE, POSITIVE, cases, dense_losses, share_of, steepness

from prealign_ds.alignment import loss as module
from prealign_ds.alignment.batches import WordBatches
from prealign_ds.alignment.loss import layer_alignments
from prealign_ds.alignment.rows import TableRows
from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable

MANY = settings(max_examples=150, deadline=None)


def losses_of(states, case):
    _, relations_RR, counts, temperature, elements = case
    with patch.object(module, "BLOCK_ELEMENTS", elements):
        return layer_alignments(list(states), share_of(relations_RR, counts), temperature).losses_L


def gradient_of(function, states_LRH, *arguments):
    states_LRH = states_LRH.clone().requires_grad_()
    losses_L = function(states_LRH, *arguments)
    weights_L = torch.arange(1, len(losses_L) + 1)  # a mix-up of layers shows
    return losses_L.detach(), torch.autograd.grad((losses_L * weights_L).sum(), states_LRH)[0]


@MANY
@given(cases())
def test_losses_and_gradients_equal_those_of_whole_matrices(case):
    states, relations, _, temperature, _ = case
    losses, gradient = gradient_of(losses_of, states, case)
    expected, wanted = gradient_of(dense_losses, states, relations, temperature)
    assert torch.allclose(losses, expected, rtol=1e-11, atol=1e-11)
    assert steepness(gradient - wanted, states, temperature).norm() <= 1e-11


@MANY
@given(cases())
def test_fp32_is_as_exact_as_whole_matrices_in_fp32(case):
    states, relations, _, temperature, _ = case
    states = states.float()
    found, usual = gradient_of(losses_of, states, case), gradient_of(dense_losses, states, relations, temperature)
    exact = gradient_of(dense_losses, states.double(), relations, temperature)
    assert found[0].dtype == found[1].dtype == torch.float32
    losses, gradients = ([result[part] - exact[part] for result in (found, usual)] for part in (0, 1))
    ours, theirs = (steepness(gradient, states, temperature).norm() for gradient in gradients)
    # A cosine of vectors that are made unit-sized is off by some halves of eps, and a row's loss by as much / tau.
    floor = 2 * torch.finfo(torch.float32).eps * len(relations) / temperature
    assert losses[0].norm() <= 4 * losses[1].norm() + floor
    assert ours <= 4 * theirs + 1e-6 / temperature


@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_gradient_is_the_derivative(case):
    unit_sized = torch.nn.functional.normalize(case[0], dim=-1) * 2
    states = [layer.clone().requires_grad_() for layer in unit_sized]
    steep = (*case[:3], max(case[3], 0.1), case[4])  # finite differences are too coarse for smaller temperatures
    assert torch.autograd.gradcheck(lambda *layers: losses_of(layers, steep), states, atol=1e-4)


@MANY
@given(cases(), st.data())
def test_rows_of_zeros_have_cosine_0_and_get_no_gradient(case, data):
    states, relations, _, temperature, _ = case
    zeros = data.draw(st.lists(st.integers(0, len(relations) - 1), min_size=1, max_size=3))
    states[:, zeros] = 0
    losses, gradient = gradient_of(losses_of, states, case)
    expected, wanted = gradient_of(dense_losses, states, relations, temperature)
    assert torch.allclose(losses, expected, rtol=1e-11, atol=1e-11)
    assert torch.all(gradient[:, zeros] == 0)
    assert steepness(gradient - wanted, states, temperature).norm() <= 1e-11


@MANY
@given(cases())
def test_sums_of_cosines(case):
    states, relations, counts, temperature, elements = case
    with patch.object(module, "BLOCK_ELEMENTS", elements):
        found = layer_alignments(list(states), share_of(relations, counts), temperature)
    units = torch.nn.functional.normalize(states, dim=-1)
    cosines = units @ units.mT
    positive = (cosines * (relations == POSITIVE)).sum((1, 2))
    assert torch.allclose(found.positive_cosines_L, positive, atol=1e-9)
    assert torch.allclose(found.other_cosines_L, cosines.sum((1, 2)) - len(relations) - positive, atol=1e-9)


def test_two_anchors_with_all_else_excluded_are_content():
    relations = torch.full((5, 5), EXCLUDED)
    relations[0, 1] = relations[1, 0] = POSITIVE
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses, gradient = gradient_of(losses_of, states, (states, relations, [5], 0.01, 2**22))
    assert losses.abs().max() < 1e-10 and gradient.abs().max() < 1e-10


def test_a_batch_without_anchors_has_no_loss():
    relations = torch.full((3, 3), NEGATIVE)
    relations.fill_diagonal_(EXCLUDED)
    states = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    losses, gradient = gradient_of(losses_of, states, (states, relations, [3], 0.1, 2**22))
    assert torch.all(losses == 0) and torch.all(gradient == 0)


def test_opposite_positives_at_a_small_temperature_stay_finite():
    relations = torch.tensor([[EXCLUDED, POSITIVE, NEGATIVE], [POSITIVE, EXCLUDED, NEGATIVE], [0, 0, EXCLUDED]])
    states = torch.tensor([[[1.0, 0.0], [-1.0, 1e-3], [1.0, 1e-3]]])
    losses, gradient = gradient_of(losses_of, states, (states, relations, [3], 0.01, 2**22))
    assert losses.item() == pytest.approx(200 + math.log(2), rel=1e-4) and gradient.isfinite().all()


def test_not_a_number_is_not_hidden():
    states = torch.ones(1, 3, 2)
    states[0, 1, 1] = torch.nan
    relations = torch.tensor([[EXCLUDED, POSITIVE, 0], [POSITIVE, EXCLUDED, 0], [0, 0, EXCLUDED]])
    losses, gradient = gradient_of(losses_of, states, (states, relations, [3], 0.1, 2**22))
    assert losses.isnan().all() and gradient.isnan().any()


@settings(max_examples=30, deadline=None)
@given(cases())
def test_autocast_changes_nothing_and_half_precision_states_are_taken(case):
    states = case[0].bfloat16()
    plain, wanted = gradient_of(losses_of, states.float(), case)
    with torch.autocast("cpu", torch.bfloat16):
        losses, gradient = gradient_of(losses_of, states, case)
    assert torch.equal(losses, plain) and torch.equal(gradient, wanted.bfloat16())


def test_nothing_as_large_as_rows_times_rows_waits_for_the_backward():
    relations = torch.zeros(256, 256, dtype=torch.int64)
    relations.fill_diagonal_(EXCLUDED)
    relations[torch.arange(256), torch.arange(256) ^ 1] = POSITIVE
    states = torch.randn(3, 256, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        losses_of(states, (states, relations, [256], 0.1, 2**22))
    assert sum(kept) == states.numel()


def test_two_and_four_ranks_with_uneven_shares_agree_with_whole_matrices():
    launch_each(*((ranks, Path(__file__).with_name("worker_ranks.py")) for ranks in (2, 4)))


WORDS = st.sampled_from("bank shore house music river street".split())
TRANSLATIONS = st.tuples(st.sampled_from(["de", "ru"]), st.sampled_from("Ufer Bank Haus Klavier река дом".split()))


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(WORDS, TRANSLATIONS), min_size=3, max_size=14),
    held_out=st.sets(WORDS, max_size=2),
    positives=st.sampled_from(["edges", "entry"]),
    words=st.integers(1, 6),
    world=st.integers(1, 3),
)
def test_pairs_of_word_batches_are_ascending_distinct_and_symmetric(
    tokenizer, pairs, held_out, positives, words, world
):
    table = AlignmentTable.from_pairs(None, [Pair(word, *translation, "test") for word, translation in pairs])
    for word in held_out & {word for word, _ in pairs}:
        table.edge_held_out[table.edges_of(table.lookup(word))] = True
    assume(not table.edge_held_out.all())
    batches = WordBatches(TableRows(table, tokenizer, positives), words, 3, seed=0)
    assume(len(batches.row_ids(0)) >= world)
    shares = [batches.batch(0, rank, world) for rank in range(world)]
    total = sum(shares[0].counts)
    relations = torch.full((total, total), NEGATIVE)
    for rank, share in enumerate(shares):
        own = relations[sum(share.counts[:rank]) : sum(share.counts[: rank + 1])]
        for (rows, columns), kind in ((share.positives, POSITIVE), (share.excluded, EXCLUDED)):
            assert torch.all(rows.diff() >= 0)
            assert torch.all(own[rows, columns] == NEGATIVE), "no pair is of two kinds"
            own[rows, columns] = kind
            assert (own == kind).sum() == len(rows), "each pair once"
        assert torch.equal(share.num_positives_R, shares[0].num_positives_R)
    assert torch.equal(relations, relations.T)
    assert torch.all(relations.diagonal() == EXCLUDED)
    assert torch.equal((relations == POSITIVE).sum(1), shares[0].num_positives_R)
