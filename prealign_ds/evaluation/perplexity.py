"""Perplexity of held-out text, and bits per byte, which compares across tokenizers."""

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

    Every rank makes the same number of forward passes (under ZeRO-3 they are collective), with empty ones at the end.

    Args:
        compute: Reaches the model.
        vocabulary: Ids in use.
        tokens: The held-out text.
        byte_lengths: UTF-8 bytes of each token id.
        sequence_length: Tokens S in a window.
        batch_size: Windows that one rank evaluates at once.
        device: Where to put the batches.
        max_tokens: Use at most this many tokens; 0 uses all.
        groups: From a text, an offset and a number to the group of each of these tokens
            (:class:`prealign_ds.evaluation.seen.SeenWords`); None for no perplexities by group.

    Raises:
        ValueError: If there are fewer than two tokens.
    """
    total = min(tokens.num_tokens, max_tokens or tokens.num_tokens)
    if total < 2:
        raise ValueError(f"held-out text of {total} token(s): perplexity needs two or more")
    rank, world = rank_and_world()
    windows = math.ceil((total - 1) / sequence_length)
    sums = torch.zeros(3 + 2 * len(GROUPS), dtype=torch.float64, device=device)
    for batch in range(math.ceil(windows / (batch_size * world))):
        first = (batch * world + rank) * batch_size
        inputs = np.zeros((batch_size, sequence_length), dtype=np.int64)
        targets = np.full((batch_size, sequence_length), IGNORED, dtype=np.int64)
        group = np.zeros((batch_size, sequence_length), dtype=np.int64)
        for place in range(batch_size):
            start = (first + place) * sequence_length
            row = tokens.read(start, min(sequence_length + 1, total - start)).astype(np.int64)
            if len(row) > 1:
                inputs[place, : len(row) - 1], targets[place, : len(row) - 1] = row[:-1], row[1:]
                if groups is not None:
                    group[place, : len(row) - 1] = groups(tokens, start + 1, len(row) - 1)
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
