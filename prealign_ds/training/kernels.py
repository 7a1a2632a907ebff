"""Which implementation computes what: decided here, once for a stage, logged with reasons, and forced by ``kernels.*``.

Nothing is computed here. Attention, optimizers, layer norms and losses are those of PyTorch, DeepSpeed, transformers,
Liger and NVIDIA apex; what is missing is passed over with a reason.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.op_builder.builder import assert_no_cuda_mismatch
from torch import nn
from torch.nn import functional
from torch.utils.cpp_extension import CUDA_HOME
from transformers.activations import NewGELUActivation

from prealign_ds.config import KernelSettings
from prealign_ds.model import transformer_blocks
from prealign_ds.training.environment import World

_LOGGER = logging.getLogger(__name__)
_ADAM_BUILDERS = {False: "FusedAdamBuilder", True: "CPUAdamBuilder"}

LARGE_LOGITS = 2**30
"""Bytes of a micro-batch's fp32 logits from which the plain LM loss is not the default."""

COMPILED_LOGITS_SHARE = 1 / 8
"""Share of a GPU's memory up to which the compiled LM loss may hold logits and their gradient by default."""


@dataclass(frozen=True)
class Place:
    """Where a stage computes, as far as the choice of kernels depends on it.

    Attributes:
        device: ``cpu``, ``cuda`` or another accelerator of DeepSpeed.
        capability: CUDA compute capability, (0, 0) elsewhere.
        half: Whether matrices are multiplied in bf16 or fp16.
        zero_stage: ZeRO stage.
        offload: Where the optimizer's state is offloaded to: ``cpu``, ``nvme``, or nothing.
        word_batches: Whether the stage encodes word batches, whose shape changes with every step.
        two_backwards: Whether a graph's gradients are taken more than once (``log.gradient_cosine_every_steps``).
        logits_bytes: A micro-batch's logits in fp32, or in 16 bits with their gradient.
        linear_head: Whether the logits are the last state times the output embedding and nothing else.
        memory: Bytes of the GPU; 0 elsewhere.
        chained_gelu: Whether the model has the GELU of GPT-2, which transformers computes in eight operations.
        compiled: Whether the blocks are compiled.
    """

    device: str
    capability: tuple[int, int]
    half: bool
    zero_stage: int
    offload: str
    word_batches: bool
    logits_bytes: int
    linear_head: bool
    memory: int = 0
    two_backwards: bool = False
    chained_gelu: bool = True
    compiled: bool = False

    @classmethod
    def of(
        cls,
        device: torch.device,
        deepspeed: Mapping[str, Any],
        model_config: Any,
        tokens: int,
        word_batches: bool,
        two_backwards: bool = False,
    ) -> Place:
        """The place of a stage.

        Args:
            device: Where this rank computes.
            deepspeed: The DeepSpeed configuration.
            model_config: The model's transformers configuration.
            tokens: Tokens in a micro-batch.
            word_batches: Whether the stage encodes word batches.
            two_backwards: Whether a graph's gradients are taken more than once.
        """
        zero = deepspeed.get("zero_optimization", {})
        changes_logits = ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_bias")
        hidden_act = getattr(model_config, "hidden_act", "")
        offload = zero.get("offload_optimizer", {}).get("device", "none")
        on_gpu = device.type == "cuda"
        return cls(
            device=device.type,
            capability=torch.cuda.get_device_capability(device) if on_gpu else (0, 0),
            memory=torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
            half=any(deepspeed.get(key, {}).get("enabled") for key in ("bf16", "fp16", "torch_autocast")),
            zero_stage=zero.get("stage", 0),
            offload="" if offload == "none" else offload,
            word_batches=word_batches,
            two_backwards=two_backwards,
            logits_bytes=4 * tokens * model_config.vocab_size,
            chained_gelu="gelu_new" in (getattr(model_config, "activation_function", ""), hidden_act),
            linear_head=not any(getattr(model_config, name, None) for name in changes_logits),
        )


@dataclass(frozen=True)
class _Candidate:
    """An implementation: why it cannot be used, or why it is not the choice although it can; empty if neither."""

    impossible: str = ""
    unwise: str = ""


@dataclass(frozen=True)
class Kernels:
    """The chosen implementations, named as in :class:`prealign_ds.config.KernelSettings`."""

    attention: str = "sdpa"
    optimizer: str = "torch"
    normalization: str = "torch"
    activation: str = "plain"
    lm_loss: str = "plain"
    compile: str = "off"
    tf32: str = "off"

    def apply(self, model: nn.Module) -> None:
        """Put the layer norms, activations and compilation that were chosen into a model, and set TF32."""
        torch.set_float32_matmul_precision("high" if self.tf32 == "on" else "highest")
        if self.normalization == "apex":
            _use_apex_norms(model)
        if self.activation == "fused":
            _replace(model, NewGELUActivation, lambda gelu: nn.GELU(approximate="tanh"))
        if self.compile == "blocks":
            for block in transformer_blocks(model):
                block.compile()


def choose_kernels(settings: KernelSettings, place: Place) -> tuple[Kernels, list[str]]:
    """The fastest implementations that fit, or those that are forced.

    Returns:
        The choice, and a line for each kernel that says what was chosen and why not the others.

    Raises:
        ValueError: If a forced implementation cannot be used here, with the reason.
    """
    chosen, lines = {}, []
    for key, find_candidates in _CANDIDATES.items():
        candidates, wanted = find_candidates(place), getattr(settings, key)
        chosen[key] = name = _choose(key, wanted, candidates)
        place = replace(place, compiled=chosen["compile"] == "blocks")
        others = [f"not {other}: {_reason(c)}" for other, c in candidates.items() if other != name and _reason(c)]
        lines.append("; ".join([f"{key}: {name}{' (forced)' if wanted != 'auto' else ''}", *others]))
    return Kernels(**chosen), lines


def _reason(candidate: _Candidate) -> str:
    return candidate.impossible or candidate.unwise


def _choose(key: str, wanted: str, candidates: dict[str, _Candidate]) -> str:
    usable = {name: candidate for name, candidate in candidates.items() if not candidate.impossible}
    if wanted == "auto":
        return next((name for name, candidate in usable.items() if not candidate.unwise), next(iter(usable)))
    if wanted not in usable:
        raise ValueError(
            f"kernels.{key}: {wanted} cannot be used here: {candidates[wanted].impossible}; "
            f"choose auto{''.join(f', {name}' for name in usable)}"
        )
    return wanted


def _attention(place: Place) -> dict[str, _Candidate]:
    flash = _Candidate(unwise="sdpa runs PyTorch's own flash attention")
    if place.device != "cuda" or place.capability < (8, 0) or not place.half:
        flash = _Candidate("it needs bf16 or fp16 on an NVIDIA GPU from Ampere on")
    elif not _installed("flash_attn"):
        flash = _Candidate("the package flash-attn is not installed")
    return {"sdpa": _Candidate(), "flash_attention_2": flash, "eager": _Candidate(unwise="it holds all weights")}


def _optimizer(place: Place) -> dict[str, _Candidate]:
    deepspeed, torch_adam = _Candidate(adam_obstacle(bool(place.offload))), _Candidate()
    apex = _Candidate("" if _installed("apex.optimizers") else "NVIDIA apex is not installed")
    if place.offload:
        refused = _Candidate(f"DeepSpeed offloads to {place.offload} with its own alone")
        return {"deepspeed": deepspeed, "torch": refused, "apex": refused}
    if place.device == "cpu":
        slower = _Candidate(deepspeed.impossible, "PyTorch's is fused on a CPU too and needs no compiler")
        return {"torch": torch_adam, "deepspeed": slower, "apex": _Candidate("it needs a GPU")}
    return {"deepspeed": deepspeed, "apex": apex, "torch": torch_adam}


def _normalization(place: Place) -> dict[str, _Candidate]:
    apex = _Candidate()
    if not _installed("apex.normalization"):
        apex = _Candidate("NVIDIA apex is not installed")
    elif place.device != "cuda":
        apex = _Candidate("it needs a GPU")
    elif place.compiled:
        apex = _Candidate(unwise="torch.compile fuses PyTorch's")
    return {"apex": apex, "torch": _Candidate()}


def _activation(place: Place) -> dict[str, _Candidate]:
    if not place.chained_gelu:
        return {"plain": _Candidate(), "fused": _Candidate("this model has no gelu_new")}
    return {"fused": _Candidate(), "plain": _Candidate(unwise="it is a chain of eight operations, each with a result")}


def _lm_loss(place: Place) -> dict[str, _Candidate]:
    small = f"{place.logits_bytes / 2**30:.2f} GiB of logits are few" if place.logits_bytes < LARGE_LOGITS else ""
    other_head = "" if place.linear_head else "this model's logits are not the output embedding's alone"
    liger = other_head or ("" if place.device == "cuda" else "it needs a GPU")
    liger = liger or ("" if _installed("liger_kernel") else "the package liger-kernel is not installed")
    once = "its backward runs once, and log.gradient_cosine_every_steps needs it again" if place.two_backwards else ""
    liger = liger or once
    compiled = _Candidate(_compiler_obstacle(place) or once)
    if place.device == "cpu":
        compiled = replace(compiled, unwise="on a CPU it takes a minute and gains little")
    elif place.logits_bytes > COMPILED_LOGITS_SHARE * place.memory:
        held = f"{place.logits_bytes / 2**30:.1f} GiB of logits and their gradient"
        compiled = replace(compiled, unwise=f"{held} are much of this GPU's {place.memory / 2**30:.0f}")
    old = "" if hasattr(functional, "linear_cross_entropy") else f"PyTorch {torch.__version__} has none; 2.13 has"
    return {
        "compiled": compiled,
        "liger": _Candidate(liger, small),
        "chunked": _Candidate(other_head or old, small),
        "plain": _Candidate(),
    }


def _compilation(place: Place) -> dict[str, _Candidate]:
    blocks = _Candidate()
    if place.zero_stage == 3:
        blocks = _Candidate("ZeRO-3 fetches weights between the operations")
    elif place.word_batches:
        blocks = _Candidate("word batches change their shape with every step")
    elif obstacle := _compiler_obstacle(place):
        blocks = _Candidate(obstacle)
    elif place.device == "cpu":
        blocks = _Candidate(unwise="on a CPU it takes a minute and gains little")
    return {"blocks": blocks, "off": _Candidate()}


def _compiler_obstacle(place: Place) -> str:
    """Why torch.compile cannot be used here; empty if it can."""
    if place.device == "cuda":
        return "" if _installed("triton") else "the package triton is not installed"
    return "" if shutil.which("g++") else "there is no C++ compiler"


def _tf32(place: Place) -> dict[str, _Candidate]:
    on = _Candidate(unwise="the cosines of the alignment loss keep fp32's precision")
    if place.capability < (8, 0):
        on = _Candidate("it needs an NVIDIA GPU from Ampere on")
    return {"on": on, "off": _Candidate()}


_CANDIDATES: dict[str, Callable[[Place], dict[str, _Candidate]]] = {
    "compile": _compilation,
    "attention": _attention,
    "optimizer": _optimizer,
    "normalization": _normalization,
    "activation": _activation,
    "lm_loss": _lm_loss,
    "tf32": _tf32,
}


@cache
def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False


def adam_obstacle(offload: bool) -> str:
    """Why DeepSpeed's Adam cannot be used here; empty if it can."""
    builder = get_accelerator().create_op_builder(_ADAM_BUILDERS[offload])
    if builder is None:
        return f"DeepSpeed has none for {get_accelerator().device_name()}"
    if installed_ops.get(builder.name):
        return ""
    if not shutil.which("ninja") or not shutil.which("g++"):
        return "compiling it takes ninja and a C++ compiler"
    if get_accelerator().device_name() != "cuda":
        return ""
    if CUDA_HOME is None:  # DeepSpeed would compile it for the CPU, and fail at the first step
        return "compiling it takes a CUDA toolkit (nvcc, CUDA_HOME)"
    try:
        assert_no_cuda_mismatch(builder.name)
    except Exception as error:
        return str(error).splitlines()[0]
    return ""


def compile_adam(world: World, offload: bool) -> None:
    """Compile DeepSpeed's Adam before any rank waits for another's messages; all ranks must call it.

    At its first use that takes a minute, and ranks that wait in a collective for a rank that compiles can time out.
    """
    _LOGGER.info("compiling DeepSpeed's Adam, if it is not there yet (a minute)")
    get_accelerator().create_op_builder(_ADAM_BUILDERS[offload]).load(verbose=False)
    world.any(False)


def _use_apex_norms(model: nn.Module) -> None:
    from apex.normalization import FusedLayerNorm

    def fused(norm: nn.LayerNorm) -> nn.Module:
        new = FusedLayerNorm(norm.normalized_shape, eps=norm.eps)
        new.weight, new.bias = norm.weight, norm.bias
        return new

    _replace(model, nn.LayerNorm, fused)


def _replace(model: nn.Module, old: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    """Replace all modules of the class ``old`` by others with the same names, and the same weights if any."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module) is old:
                setattr(parent, name, new(module))
