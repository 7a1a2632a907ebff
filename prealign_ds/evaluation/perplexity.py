"""Perplexity of held-out text, and bits per byte, which compares across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from prealign_ds.codeswitch.switcher import IGNORED, TokenRow


@dataclass(frozen=True)
class Perplexity:
    """Likelihood of a text.

    Attributes:
        perplexity: exp(nats / tokens).
        bits_per_byte: Bits for each UTF-8 byte of the predicted tokens.
        tokens: Predicted tokens.
        nats: Sum of their cross-entropies.
    """

    perplexity: float
    bits_per_byte: float
    tokens: int
    nats: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def perplexity(
    loss_sum: Callable[[Tensor, Tensor], Tensor],
    tokens: TokenRow,
    byte_lengths: np.ndarray,
    sequence_length: int,
    batch_size: int,
    device: torch.device,
    max_tokens: int = 0,
) -> Perplexity:
    """Perplexity over neighbouring windows; each token but the first is predicted once. All ranks must call it.

    Every rank makes the same number of forward passes (under ZeRO-3 they are collective), with empty ones at the end.

    Args:
        loss_sum: Maps input ids and targets, both (B, S), to the summed cross-entropy in nats.
        tokens: The held-out text.
        byte_lengths: UTF-8 bytes of each token id.
        sequence_length: Tokens S in a window.
        batch_size: Windows that one rank evaluates at once.
        device: Where to put the batches.
        max_tokens: Use at most this many tokens; 0 uses all.

    Raises:
        ValueError: If there are fewer than two tokens.
    """
    total = min(tokens.num_tokens, max_tokens or tokens.num_tokens)
    if total < 2:
        raise ValueError(f"held-out text of {total} token(s): perplexity needs two or more")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    windows = math.ceil((total - 1) / sequence_length)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in range(math.ceil(windows / (batch_size * world))):
        first = (batch * world + rank) * batch_size
        inputs = np.zeros((batch_size, sequence_length), dtype=np.int64)
        targets = np.full((batch_size, sequence_length), IGNORED, dtype=np.int64)
        for place in range(batch_size):
            start = (first + place) * sequence_length
            row = tokens.read(start, min(sequence_length + 1, total - start)).astype(np.int64)
            if len(row) > 1:
                inputs[place, : len(row) - 1], targets[place, : len(row) - 1] = row[:-1], row[1:]
        sums[0] += loss_sum(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)).double()
        predicted = targets[targets != IGNORED]
        sums[1] += len(predicted)
        sums[2] += int(byte_lengths[predicted].sum())
    if world > 1:
        dist.all_reduce(sums)
    nats, count, num_bytes = sums.tolist()
    return Perplexity(math.exp(min(nats / count, 700.0)), nats / math.log(2) / max(num_bytes, 1), int(count), nats)
