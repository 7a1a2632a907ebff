"""Perplexity with known answers: a uniform model, and a model that knows every bigram."""

import math

import numpy as np
import pytest
import torch
from conftest import Row
from rigged import rigged

from prealign_ds.evaluation.perplexity import perplexity


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
    assert measure(uniform, np.zeros(50, dtype=int), max_tokens=11).tokens == 10


def test_a_text_of_one_token_is_refused():
    with pytest.raises(ValueError, match="needs two or more"):
        measure(uniform, [3])
