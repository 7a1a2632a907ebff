"""Eq. 2 on several ranks against whole matrices on one, for random batches.

All ranks draw the same batches, and fail together.
"""

import sys
from pathlib import Path
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from relations import cases, dense_losses, share_of, steepness

from prealign_ds.alignment import loss as module


def differences(case, rank):
    """Norms of the differences of losses and gradients, and the shapes of what this rank sent."""
    states_LRH, relations_RR, counts, temperature, elements = case
    states_LRH = states_LRH.clone().requires_grad_()
    expected_L = dense_losses(states_LRH, relations_RR, temperature)
    layer_weights_L = torch.arange(1, len(expected_L) + 1, dtype=torch.float64)
    (expected_LRH,) = torch.autograd.grad((expected_L * layer_weights_L).sum(), states_LRH)
    first = sum(counts[:rank])
    own = [layer[first : first + counts[rank]].detach().requires_grad_() for layer in states_LRH]
    sent = []

    def gather(gathered, local, **options):
        sent.append(local.shape)
        return real(gathered, local, **options)

    real = module._all_gather
    with patch.object(module, "BLOCK_ELEMENTS", elements), patch.object(module, "_all_gather", gather):
        found_L = module.layer_alignments(own, share_of(relations_RR, counts, rank), temperature).losses_L
        found = torch.autograd.grad((found_L * layer_weights_L).sum(), own)
    found_L = found_L.detach().clone()
    dist.all_reduce(found_L)
    gradient_LRH = torch.zeros_like(expected_LRH)
    gradient_LRH[:, first : first + counts[rank]] = torch.stack(found)
    dist.all_reduce(gradient_LRH)
    return (
        (found_L - expected_L).detach().norm(),
        steepness(gradient_LRH - expected_LRH, states_LRH.detach(), temperature).norm(),
        sent,
    )


def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    @settings(
        derandomize=True,
        deadline=None,
        max_examples=300 // world,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(cases(world))
    def ranks_agree_with_whole_matrices(case):
        loss, gradient, sent = differences(case, rank)
        assert loss < 1e-10 and gradient < 1e-10, (loss, gradient, case)
        layers, _, hidden = case[0].shape
        longest = max(case[2])
        rows = [shape for shape in sent if len(shape) == 3]
        denominators = [shape for shape in sent if len(shape) == 2]
        assert len(rows) == len(denominators) and sum(shape[0] for shape in rows) == layers
        assert {shape[1:] for shape in rows} == {(longest, hidden)}, "each rank sends its rows once"
        if case[4] == 2**22:
            assert len(sent) == 2, "small layers travel together"

    ranks_agree_with_whole_matrices()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
