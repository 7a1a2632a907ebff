"""The DeepSpeed engine of a stage, and its weights in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from prealign_ds.alignment.stage import JointModel
from prealign_ds.config import OptimizerSettings
from prealign_ds.files import read_json
from prealign_ds.training.kernels import Kernels
from prealign_ds.training.plan import StagePlan

_DERIVED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def read_ds_config(path: Path) -> dict[str, Any]:
    """A JSON file from ``ds_configs/``.

    Raises:
        ValueError: If the file sets what the recipe decides, or rounds the weights without ZeRO.
    """
    if not path.is_file():
        raise ValueError(f"deepspeed: {path} does not exist; choose one from ds_configs/")
    config = read_json(path)
    for key in _DERIVED:
        if key in config:
            raise ValueError(f"{path}: {key} is derived from the recipe; remove it there")
    if "optimizer" in config:
        raise ValueError(f"{path}: optimizer comes from the recipe (kernels.optimizer, *.optimizer); remove it there")
    rounded = [name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")]
    if rounded and not config.get("zero_optimization", {}).get("stage"):
        raise ValueError(f"{path}: {rounded[0]} without ZeRO gives no fp32 weights back; set zero_optimization.stage")
    return config


def engine_config(
    ds_config: dict[str, Any], plan: StagePlan, optimizer: OptimizerSettings, kernels: Kernels
) -> dict[str, Any]:
    """The DeepSpeed configuration of a stage: the file's, with the batch arithmetic and AdamW.

    Its throughput timer is off unless the file has ``timers``: it waits for the GPU twice in every micro-step, so
    that Python cannot run ahead (on an H200, 93 of the 535 ms of a step of 150M); our log has the same figure.

    Args:
        ds_config: From :func:`read_ds_config`.
        plan: Gives the batch sizes.
        optimizer: Gives AdamW's numbers and the clipping.
        kernels: Decide whose AdamW it is.
    """
    numbers = {
        "lr": optimizer.learning_rate,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    whose = {"torch_adam": True, "fused": True} if kernels.optimizer == "torch" else {}
    return (
        {"timers": {"throughput": {"enabled": False}}}
        | ds_config
        | {
            "train_batch_size": plan.batch_samples,
            "train_micro_batch_size_per_gpu": plan.micro_batch_size,
            "gradient_accumulation_steps": plan.accumulation_steps,
            "gradient_clipping": optimizer.gradient_clipping,
            "steps_per_print": 10**9,
            "optimizer": {"type": "AdamW", "params": numbers | whose},
        }
    )


def start_engine(module: JointModel, config: dict[str, Any], kernels: Kernels) -> Any:
    """Wrap ``module`` in a DeepSpeed engine; matrices decay, norms and biases do not.

    Buffers keep fp32: DeepSpeed casts them with the weights, which turns rotary frequencies into nonsense far from the
    start (in bf16 an angle at position 1,000 is off by radians).
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decay = config["optimizer"]["params"]["weight_decay"]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay, "name": "matrices"},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, "name": "vectors"},
    ]
    if kernels.optimizer == "apex":
        from apex.optimizers import FusedAdam

        choice = {"optimizer": FusedAdam(groups, **config["optimizer"]["params"])}
        config = {key: value for key, value in config.items() if key != "optimizer"}
    else:
        choice = {"model_parameters": groups}
    engine, *_ = deepspeed.initialize(model=module, config=config, **choice)
    for name, buffer in module.named_buffers():
        if name in buffers:
            buffer.data = buffers[name].to(buffer.device)
    return engine


def set_learning_rate(engine: Any, value: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def take_step(engine: Any) -> bool:
    """Take the optimizer step, and tell whether it was applied: not where the gradient is not finite.

    ZeRO's optimizers skip such a step by themselves. Without ZeRO, DeepSpeed would apply it.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization() or not engine.is_gradient_accumulation_boundary():
        engine.step()
    else:
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        # The same on all ranks: the gradients are reduced. DeepSpeed counts a step as skipped by this attribute.
        optimizer.overflow = not torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        apply = optimizer.step
        if optimizer.overflow:
            optimizer.step = lambda: None
        engine.step()
        optimizer.step = apply
    return engine.was_step_applied()


def checkpoint_bytes(num_parameters: int, weight_bytes: int, zero_stage: int) -> int:
    """About how much a checkpoint takes: the weights, Adam's two moments, and under ZeRO the fp32 weights."""
    return num_parameters * (weight_bytes + 8 + (4 if zero_stage else 0))


def full_weights(engine: Any, model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The model's fp32 master weights, whole, on the CPU; tied weights once. All ranks must call it.

    Args:
        engine: The DeepSpeed engine.
        model: The module whose parameter names to use: the language model without its wrapper.
        keep: Whether this rank wants the weights; others take part in the gathering and get an empty dictionary.

    Raises:
        RuntimeError: If the optimizer does not give its fp32 weights.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        full: Tensor | None = safe_get_full_fp32_param(parameter)
        if full is None:
            if parameter.dtype != torch.float32:
                raise RuntimeError(f"{name}: no fp32 weights with this ds_config; use ZeRO 1, 2 or 3 with fp16 or bf16")
            full = parameter.detach()
        if keep:
            weights[name] = full.detach().cpu().clone().float()
    return weights
