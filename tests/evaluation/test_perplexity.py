"""Perplexity with known answers: a uniform model, and a model that knows every bigram."""

import math

import numpy as np
import pytest
import torch
from conftest import Row
from rigged import rigged

from prealign_ds.evaluation.perplexity import BehindEndOfText, perplexity


def measure(compute, tokens, lengths=None, batch_size=3, **options):
    lengths = np.ones(20, dtype=int) if lengths is None else lengths
    return perplexity(compute, 20, Row(tokens), lengths, 7, batch_size, torch.device("cpu"), **options)


@rigged
def uniform(inputs):
    return torch.zeros(*inputs.shape, 24)  # four ids of padding


@rigged
def knows_the_next_number(inputs):
    return torch.nn.functional.one_hot((inputs + 1) % 20, 20).float() * 100


@pytest.mark.parametrize("number", [2, 7, 8, 9, 50, 64, 65])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_token_but_the_first_is_predicted_once(number, batch_size):
    found = measure(uniform, np.arange(number) % 20, batch_size=batch_size)
    assert found.tokens == number - 1
    assert found.perplexity == pytest.approx(20) and found.bits_per_byte == pytest.approx(math.log2(20))
    assert measure(knows_the_next_number, np.arange(number) % 20, batch_size=batch_size).perplexity == pytest.approx(1)


def test_bits_per_byte_count_the_bytes_of_the_predicted_tokens():
    lengths = np.arange(20)
    tokens = np.array([19, 3, 0, 4])  # 7 bytes are predicted; the end-of-text token has none
    assert measure(uniform, tokens, lengths).bits_per_byte == pytest.approx(3 * math.log2(20) / 7)


def test_max_tokens_uses_the_first_ones():
    assert measure(uniform, np.zeros(50, dtype=int), max_tokens=11).tokens == 11
    lengths = np.arange(20)
    assert measure(uniform, [5, 1, 2, 19, 19], lengths, max_tokens=2).bits_per_byte == pytest.approx(
        2 * math.log2(20) / 3
    )


def harness_windows(tokens, prefix, length):
    """Context and targets of each window, as lm-evaluation-harness 0.4.13 cuts a document."""
    yield [prefix, *tokens[:length][:-1]], tokens[:length]
    done = length
    while done < len(tokens):
        new = min(length, len(tokens) - done)
        yield tokens[done + new - length - 1 : done + new - 1], tokens[done : done + new]
        done += new


@pytest.mark.parametrize("number", [1, 3, 7, 8, 13, 14, 15, 50])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_a_text_behind_end_of_text_is_read_as_the_harness_reads_it(number, batch_size):
    """The model's logits depend on all of the context."""
    text, codes = np.random.default_rng(number).integers(1, 20, number), torch.randn(20, 24, dtype=torch.float64)

    def logits(inputs):
        return torch.sin(codes[inputs].cumsum(1) * 3)

    nats = 0.0
    for context, targets in harness_windows(text.tolist(), 0, 7):
        logs = torch.log_softmax(logits(torch.tensor([context]))[0, -len(targets) :, :20], 1)
        nats -= logs[range(len(targets)), targets].sum().item()
    behind = BehindEndOfText(Row(text), 0)
    found = perplexity(rigged(logits), 20, behind, np.ones(20, int), 7, batch_size, torch.device("cpu"))
    assert found.tokens == number and found.nats == pytest.approx(nats)
    assert behind.read(0, 3).tolist() == [0, *text[:2]] and behind.read(1, 2).tolist() == text[:2].tolist()
    groups = np.arange(number + 1) % 3
    parts = perplexity(
        rigged(logits), 20, behind, np.ones(20, int), 7, batch_size, torch.device("cpu"), 0,
        lambda _, start, count: groups[start : start + count],
    )  # fmt: skip
    counted = {name: part["tokens"] for name, part in parts.by_word.items()}
    assert counted == {name: n for name, k in (("seen", 1), ("unseen", 2)) if (n := (groups[1:] == k).sum())}


def test_a_text_of_one_token_is_refused():
    with pytest.raises(ValueError, match="needs two or more"):
        measure(uniform, [3])
