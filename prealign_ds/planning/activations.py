"""What a micro-step holds in memory beside the model states: the step itself, run on tensors without data.

PyTorch's fake tensors have shapes, types and lifetimes, and no bytes. So the step that is counted is transformers' own
code and autograd's own graph, whatever the architecture, at the size of the run and in a second; what no dispatch shows
is the scratch space inside one kernel. ``tools/benchmarks/footprint.py`` compares it with measured steps.

Shape letters: B samples, S tokens, N = B S, n some of these, r rows (words) of this rank, T tokens of the longest of
them, V vocabulary, H width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM, PreTrainedModel

from prealign_ds.alignment.batches import WordBatch
from prealign_ds.alignment.representations import word_representations
from prealign_ds.model import lm_loss_sum
from prealign_ds.training.kernels import Kernels

_CHUNKS = 3  # of the chunked LM loss that are run


@dataclass(frozen=True)
class WordShape:
    """The rows of a word batch that one rank encodes, and what the alignment loss works with.

    Attributes:
        groups: (rows, tokens of the longest) of each group that is encoded at once.
        loss_bytes: Working memory of the loss, beside the states and their gradients.
    """

    groups: tuple[tuple[int, int], ...]
    loss_bytes: int


@dataclass(frozen=True)
class MicroStep:
    """A micro-step of one rank.

    Attributes:
        micro_batch_size: Samples B.
        sequence_length: Tokens S in each.
        vocabulary: Ids in use, without padding.
        weight_bytes: Bytes of a weight on the device: 2 (bf16, fp16) or 4.
        autocast: Whether 4-byte weights compute in 2-byte types.
        checkpointing: Whether blocks are recomputed in the backward.
        lm_loss: Implementation of the LM loss, as in :class:`prealign_ds.config.KernelSettings`.
        attention: Attention implementation of transformers.
        activation: Implementation of GPT-2's GELU, as in :class:`prealign_ds.config.KernelSettings`.
        keeps_gradients: Whether each ``.grad`` stays on the device from step to step; else it leaves as it is made.
        bucket_bytes: Of buckets that the engine allocates when the first gradient is there.
        words: The word batch, in stage 1.
        training: Whether there is a backward; else it is an evaluation batch.
    """

    micro_batch_size: int
    sequence_length: int
    vocabulary: int
    weight_bytes: int = 2
    autocast: bool = False
    checkpointing: bool = False
    lm_loss: str = "plain"
    attention: str = "sdpa"
    activation: str = "fused"
    keeps_gradients: bool = True
    bucket_bytes: int = 0
    words: WordShape | None = None
    training: bool = True


def micro_step_bytes(config: Any, step: MicroStep) -> dict[str, int]:
    """Bytes that a micro-step holds when it holds the most, beside weights and kept gradients.

    Args:
        config: The transformers configuration of the model.
        step: What is run.

    Returns:
        ``activations`` (made by the blocks, forward and backward), ``logits`` (by the LM head and its loss),
        ``alignment`` (by the word rows and their loss) and ``buckets``, at that one moment. Where a parameter is used
        several times, its gradients wait for the last: in stage 1 that is as much as the weights, in ``alignment``.
    """
    dtype = torch.bfloat16 if step.weight_bytes == 2 else torch.float32
    attention = "eager" if step.attention == "eager" else "sdpa"  # flash-attn keeps what sdpa keeps
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
        Kernels(activation=step.activation).apply(model)
        if step.checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        live = _prepare_gradients(model, step)
        autocast = torch.autocast("cpu", torch.bfloat16) if step.autocast else nullcontext()
        with live, torch.set_grad_enabled(step.training):
            with autocast:
                loss = _loss(model, step, live)
            if step.training:
                loss.backward()
    return {part: live.peak[part] for part in ("activations", "logits", "alignment", "buckets")}


def _prepare_gradients(model: PreTrainedModel, step: MicroStep) -> _LiveBytes:
    """Treat gradients as the engine does; returns the counter that leaves weights and kept gradients out."""
    if step.keeps_gradients:
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
    live = _LiveBytes(model.parameters())
    buckets: list[Tensor] = []

    def arrive(parameter: Tensor) -> None:
        if not buckets:
            phase = live.phase
            live.enter("buckets")
            buckets.append(torch.empty(step.bucket_bytes, dtype=torch.uint8))
            live.enter(phase)
        if not step.keeps_gradients:
            parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(arrive)
    return live


class _LiveBytes(TorchDispatchMode):
    """Adds up the memory of tensors that operators have made and that are still alive.

    Args:
        states: Parameters, which do not count, nor do their gradients.

    Attributes:
        phase: The part that new memory is counted for.
        held: Bytes held now, by part.
        peak: ``held`` at the moment when it was most.
    """

    def __init__(self, states: Iterable[Tensor]):
        super().__init__()
        self.phase = "activations"
        self.held: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._storages = WeakIdKeyDictionary()
        for tensor in states:
            for part in (tensor, tensor.grad):
                if part is not None:
                    self._storages[part.untyped_storage()] = None

    def enter(self, phase: str) -> None:
        """Count for another part from now on."""
        self.phase = phase

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._storages:
                self._hold(leaf.untyped_storage())
        if self.held.total() > self.peak.total():
            self.peak = self.held.copy()
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        self._storages[storage] = _Held(self.held, self.phase, storage.nbytes())
        self.held[self.phase] += storage.nbytes()


class _Held:
    """Lives as long as its storage."""

    def __init__(self, held: Counter[str], phase: str, num_bytes: int):
        self._held, self._phase, self._num_bytes = held, phase, num_bytes

    def __del__(self) -> None:
        self._held[self._phase] -= self._num_bytes


def _loss(model: PreTrainedModel, step: MicroStep, live: _LiveBytes) -> Tensor:
    """The losses as ``alignment.stage.JointModel`` computes them."""
    ids_BS = torch.zeros(step.micro_batch_size, step.sequence_length, dtype=torch.int64)
    live.enter("activations")
    hidden_BSH = model.base_model(input_ids=ids_BS, use_cache=False).last_hidden_state
    live.enter("logits")
    if step.training:
        hidden_BSH.register_hook(lambda _: live.enter("activations"))
    loss = _LM_LOSSES[step.lm_loss](model, hidden_BSH, ids_BS, step)
    if step.words is not None:
        loss.register_hook(lambda _: live.enter("logits"))
        live.enter("alignment")
        loss = loss + _alignment(model, step.words)
    return loss


def _plain_loss(model: PreTrainedModel, hidden_BSH: Tensor, ids_BS: Tensor, step: MicroStep) -> Tensor:
    return lm_loss_sum(model.get_output_embeddings()(hidden_BSH), ids_BS, step.vocabulary)


def _compiled_loss(model: PreTrainedModel, hidden_BSH: Tensor, ids_BS: Tensor, step: MicroStep) -> Tensor:
    if not step.training:  # evaluations do not compile theirs
        return _plain_loss(model, hidden_BSH, ids_BS, step)
    return _CompiledMemory.apply(model.get_output_embeddings()(hidden_BSH))


class _CompiledMemory(torch.autograd.Function):
    """Holds the logits until the backward makes their gradient, both in the model's type, and no more of their size."""

    @staticmethod
    def forward(ctx: Any, logits_BSV: Tensor) -> Tensor:
        ctx.save_for_backward(logits_BSV)
        return logits_BSV.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


def _chunked_loss(model: PreTrainedModel, hidden_BSH: Tensor, ids_BS: Tensor, step: MicroStep) -> Tensor:
    weight_VH = model.get_output_embeddings().weight[: step.vocabulary]
    if step.autocast:
        hidden_BSH, weight_VH = hidden_BSH.bfloat16(), weight_VH.bfloat16()
    if not step.training:  # a sample at a time
        return lm_loss_sum((hidden_BSH[0] @ weight_VH.T)[None], ids_BS[:1], step.vocabulary)
    # What PyTorch chooses on a GPU, where it needs no fp32 copies of the weight and its gradient as it does on a CPU:
    # the policy compact, with chunks of aspect_ratio:2. All chunks are alike, so a few show the peak.
    hidden_NH, ids_N = hidden_BSH.flatten(0, 1), ids_BS.flatten()
    ratio = -(-len(weight_VH) // hidden_NH.shape[1])
    chunk = max(1, (1 << (-(-len(ids_N) // ratio) - 1).bit_length()) // 2)
    options = torch.nn.LinearCrossEntropyOptions(acc_policy="compact", chunking_method=None, batch_chunk_size=chunk)
    rows = min(len(ids_N), _CHUNKS * chunk)
    rest: list[Tensor] = []
    hidden_nH = _FirstRows.apply(hidden_NH, rows, rest)
    losses_n = functional.linear_cross_entropy(hidden_nH, weight_VH, ids_N[:rows], reduction="none", options=options)
    # Built now, since the hook would keep alive what it names.
    make_rest = partial(torch.empty, len(ids_N) - rows, hidden_NH.shape[1], dtype=weight_VH.dtype)
    losses_n.register_hook(lambda _: rest.append(make_rest()))
    return losses_n.float().sum()


_LM_LOSSES = {"plain": _plain_loss, "compiled": _compiled_loss, "chunked": _chunked_loss, "liger": _chunked_loss}


class _FirstRows(torch.autograd.Function):
    """The first rows of the hidden states; until the chunks end, ``rest`` holds the memory of the others' gradient."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, rows: int, rest: list[Tensor]) -> Tensor:
        ctx.shape, ctx.rest = hidden_NH.shape, rest
        return hidden_NH[:rows]

    @staticmethod
    def backward(ctx: Any, gradient_nH: Tensor) -> tuple[Tensor | None, ...]:
        ctx.rest.clear()
        return gradient_nH.new_empty(ctx.shape), None, None


def _alignment(model: PreTrainedModel, words: WordShape) -> Tensor:
    rows, longest = sum(rows for rows, _ in words.groups), max(length for _, length in words.groups)
    none = torch.empty(0, dtype=torch.int64)
    ends = [sum(rows for rows, _ in words.groups[: place + 1]) for place in range(len(words.groups))]
    ids_rT = torch.zeros(rows, longest, dtype=torch.int64)
    groups = [(end - size, end, length) for end, (size, length) in zip(ends, words.groups, strict=True)]
    batch = WordBatch(ids_rT, torch.ones_like(ids_rT), groups, [rows], (none, none), none, (none, none), rows, rows)
    return _AlignmentMemory.apply(words.loss_bytes, *word_representations(model, batch))


class _AlignmentMemory(torch.autograd.Function):
    """Holds what ``alignment.loss`` holds: a gradient as large as the states from the forward to the backward."""

    @staticmethod
    def forward(ctx: Any, loss_bytes: int, *states: Tensor) -> Tensor:
        ctx.save_for_backward(*(torch.empty_like(layer_rH) for layer_rH in states))
        torch.empty(loss_bytes, dtype=torch.uint8)
        return states[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(torch.empty_like(layer_rH) for layer_rH in ctx.saved_tensors)
