"""Perplexity of held-out text, and bits per byte, which compares across tokenizers.

Windows are cut as lm-evaluation-harness cuts a document, so that it finds the same number (see
:mod:`prealign_ds.exporting.harness`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from prealign_ds.codeswitch.switcher import IGNORED, TokenRow
from prealign_ds.evaluation.compute import Compute, rank_and_world, sum_over_ranks
from prealign_ds.evaluation.scoring import target_nats
from prealign_ds.evaluation.seen import GROUPS


@dataclass(frozen=True)
class Perplexity:
    """Likelihood of a text.

    Attributes:
        perplexity: exp(nats / tokens).
        bits_per_byte: Bits for each UTF-8 byte of the predicted tokens.
        tokens: Predicted tokens.
        nats: Sum of their cross-entropies.
        by_word: ``perplexity``, ``tokens`` and ``nats`` of the words ``seen`` and ``unseen`` by the alignment stage
            (Figure 5), where the text was looked at so.
    """

    perplexity: float
    bits_per_byte: float
    tokens: int
    nats: float
    by_word: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class BehindEndOfText:
    """A text behind one end-of-text token, as if another document came before: its first token is predicted too.

    Args:
        tokens: The text.
        eos: The end-of-text token.
    """

    def __init__(self, tokens: TokenRow, eos: int):
        self._tokens, self._eos = tokens, eos
        self.num_tokens = tokens.num_tokens + 1

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to ``count`` tokens from ``start``."""
        if start > 0 or count < 1:
            return self._tokens.read(start - 1, count)
        return np.concatenate([[self._eos], self._tokens.read(0, count - 1)])


@torch.no_grad()
def perplexity(
    compute: Compute,
    vocabulary: int,
    tokens: TokenRow,
    byte_lengths: np.ndarray,
    sequence_length: int,
    batch_size: int,
    device: torch.device,
    max_tokens: int = 0,
    groups: Callable[[TokenRow, int, int], np.ndarray] | None = None,
) -> Perplexity:
    """Perplexity over neighbouring windows; each token but the first is predicted once. All ranks must call it.

    The last window is as long as the others where the text allows it: it begins earlier, and what the window before
    has predicted is context alone. Every rank makes the same number of forward passes (under ZeRO-3 they are
    collective), with empty ones at the end.

    Args:
        compute: Reaches the model.
        vocabulary: Ids in use.
        tokens: The held-out text.
        byte_lengths: UTF-8 bytes of each token id.
        sequence_length: Tokens S in a window.
        batch_size: Windows that one rank evaluates at once.
        device: Where to put the batches.
        max_tokens: Predict at most this many tokens, the first ones; 0 predicts all.
        groups: From a text, an offset and a number to the group of each of these tokens
            (:class:`prealign_ds.evaluation.seen.SeenWords`); None for no perplexities by group.

    Raises:
        ValueError: If there are fewer than two tokens.
    """
    if tokens.num_tokens < 2:
        raise ValueError(f"held-out text of {tokens.num_tokens} token(s): perplexity needs two or more")
    total = min(tokens.num_tokens - 1, max_tokens or tokens.num_tokens)
    rank, world = rank_and_world()
    windows = math.ceil(total / sequence_length)
    sums = torch.zeros(3 + 2 * len(GROUPS), dtype=torch.float64, device=device)
    for batch in range(math.ceil(windows / (batch_size * world))):
        first = (batch * world + rank) * batch_size
        inputs = np.zeros((batch_size, sequence_length), dtype=np.int64)
        targets = np.full((batch_size, sequence_length), IGNORED, dtype=np.int64)
        group = np.zeros((batch_size, sequence_length), dtype=np.int64)
        for place in range(batch_size):
            done = (first + place) * sequence_length
            if done < total:
                start = min(done, max(0, total - sequence_length))
                row = tokens.read(start, min(sequence_length, total) + 1).astype(np.int64)
                new = slice(done - start, len(row) - 1)
                inputs[place, : len(row) - 1], targets[place, new] = row[:-1], row[1:][new]
                if groups is not None:
                    group[place, new] = groups(tokens, done + 1, new.stop - new.start)
        nats_BS = target_nats(compute, inputs, targets, vocabulary, device).double()
        predicted = targets[targets != IGNORED]
        parts = [nats_BS.sum(), len(predicted), int(byte_lengths[predicted].sum())]
        for number in range(1, len(GROUPS) + 1):
            chosen = torch.from_numpy(group == number).to(device)
            parts += [nats_BS[chosen].sum(), chosen.sum()]
        sums += torch.stack([torch.as_tensor(part, dtype=torch.float64, device=device) for part in parts])
    nats, count, num_bytes, *of_groups = sum_over_ranks(sums).tolist()
    pairs = zip(GROUPS, of_groups[::2], of_groups[1::2], strict=True)
    by_word = {name: {"perplexity": _exp(n / c), "tokens": int(c), "nats": n} for name, n, c in pairs if c}
    return Perplexity(_exp(nats / count), nats / math.log(2) / max(num_bytes, 1), int(count), nats, by_word)


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))
