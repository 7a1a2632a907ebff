"""How an evaluation reaches the model, and how its ranks share the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

Compute = Callable[[Callable[[PreTrainedModel], Any]], Any]
"""Calls a function with the model and gives back its result.

For a plain model ``lambda task: task(model)``; in training ``lambda task: engine(task=task)``, because under ZeRO-3
parameters are whole only inside the engine's forward. There every forward is collective: all ranks must call it equally
often, with functions that run the same modules in the same order.
"""


def rank_and_world() -> tuple[int, int]:
    """Number of this rank, and of all ranks; (0, 1) in a process of its own."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place; all ranks must call it."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values)
    return values


def gather_dealt(own: Tensor, total: int) -> Tensor:
    """Rows that were dealt to the ranks one by one, in their old order; all ranks must call it.

    Args:
        own: Rows ``rank``, ``rank + world``, ...; as many on each rank, those beyond ``total`` without meaning.
        total: Rows in all.
    """
    world = rank_and_world()[1]
    shares = [own]
    if world > 1:
        shares = [torch.empty_like(own) for _ in range(world)]
        dist.all_gather(shares, own.contiguous())
    return torch.stack(shares, 1).flatten(0, 1)[:total]
