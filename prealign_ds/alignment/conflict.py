"""Whether the two losses pull the weights the same way: the cosine between their gradients, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from prealign_ds.model import transformer_blocks


class GradientComparison:
    """The gradients of both losses in one optimizer step, beside those that the engine computes.

    The graphs stay and ``.grad`` is not touched: the step is what it would be without. All micro-steps count, so that
    the result does not depend on the number of ranks.

    Args:
        model: Its parameters must be whole on this rank, as under ZeRO 0 to 2.
    """

    def __init__(self, model: PreTrainedModel):
        self._layers = parameter_layers(model)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._sums: dict[str, list[Tensor | None]] = {}

    def add(self, name: str, loss: Tensor) -> None:
        """Add the gradient of this rank's ``lm`` or ``alignment`` loss in a micro-step, scaled as for the backward."""
        found = torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True)
        known = self._sums.get(name, [None] * len(found))
        self._sums[name] = [_sum(old, new) for old, new in zip(known, found, strict=True)]

    def products(self) -> dict[str, Tensor]:
        """Products of the gradients, averaged over the ranks; all ranks must call it.

        Returns:
            Tensors of shape (L+2,), one number a layer (:func:`parameter_layers`), whose sum over ranks is
            ``gradient_dot``, the product of both gradients, and ``lm_gradient`` and ``alignment_gradient``, their
            squares. L+1 where the embeddings are tied.
        """
        world = dist.get_world_size() if dist.is_initialized() else 1
        device = self._parameters[0].device
        products = torch.zeros(3, 1 + max(self._layers), dtype=torch.float64, device=device)
        for layer, *pair in zip(self._layers, self._sums["lm"], self._sums["alignment"], strict=True):
            lm, align = (_averaged(gradient, world) for gradient in pair)
            for row, (a, b) in enumerate(((lm, align), (lm, lm), (align, align))):
                if a is not None and b is not None:
                    products[row, layer] += torch.vdot(a, b).double() / world
        return dict(zip(("gradient_dot", "lm_gradient", "alignment_gradient"), products, strict=True))


def parameter_layers(model: PreTrainedModel) -> list[int]:
    """The layer of each trained parameter: 0 is the input embedding and what comes before the blocks, l is block l.

    The final norm counts as block L, and an output embedding of its own is L+1.
    """
    blocks = transformer_blocks(model)
    of_block = {id(p): number for number, block in enumerate(blocks, 1) for p in block.parameters()}
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    head -= {id(p) for p in model.get_input_embeddings().parameters()}
    layers, latest = [], 0
    for parameter in model.parameters():
        latest = of_block.get(id(parameter), latest)
        if parameter.requires_grad:
            layers.append(len(blocks) + 1 if id(parameter) in head else latest)
    return layers


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """In fp32 and flat; None is a parameter that the loss does not reach, the same ones on every rank."""
    if new is None:
        return old
    flat = new.detach().float().reshape(-1)
    return flat if old is None else old + flat


def _averaged(gradient: Tensor | None, world: int) -> Tensor | None:
    if gradient is None or world == 1:
        return gradient
    average = gradient / world
    dist.all_reduce(average)
    return average


def cosine_and_ratio(dot: Sequence[float], lm: Sequence[float], alignment: Sequence[float]) -> tuple[float, float]:
    """Cosine between both gradients, and how large the alignment's is beside the LM's, from summed products."""
    norms = sum(lm) ** 0.5, sum(alignment) ** 0.5
    if not all(norms):
        return 0.0, 0.0
    return sum(dot) / (norms[0] * norms[1]), norms[1] / norms[0]
