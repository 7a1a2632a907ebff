"""What DeepSpeed's engines keep on a device and on its host for the model, by ZeRO stage: read in DeepSpeed 0.19.8.

Which optimizer class runs decides more than the stage's number does (``runtime/engine.py``,
``_do_optimizer_sanity_check``):

- stage 1 in bf16 with ``data_types.grad_accum_dtype: fp32`` is ``BF16_Optimizer``: it keeps a bf16 gradient AND a whole
  fp32 one for every parameter, on every rank, and reduces them once a step;
- stages 1 and 2 otherwise are ``DeepSpeedZeroOptimizer``: buckets of ``reduce_bucket_size`` elements are allocated in
  every backward, two of them with ``overlap_comm``; stage 2 reduces in every micro-step, by an all-reduce;
- stage 3 is ``DeepSpeedZeroOptimizer_Stage3``: a gathered parameter is not released while it is used again within
  ``stage3_max_reuse_distance`` (1e9 by default), so that a small model stays whole from the forward to the backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from prealign_ds.training.engine import read_ds_config

_NO_ZERO_BUCKET = 500_000_000
"""Elements that are reduced at once without ZeRO, and by BF16_Optimizer, whatever the ds_config says."""

_FP32, _MOMENTS = 4, 8
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Engine:
    """What a ds_config decides.

    Attributes:
        stage: ZeRO stage, 0 to 3.
        zero: DeepSpeed's own reading of ``zero_optimization``, defaults included.
        weight_bytes: Bytes of a weight on the device.
        gradient_bytes: Bytes of an accumulated gradient.
        reduce_bytes: Bytes of a gradient on the wire.
        autocast: Whether fp32 weights compute in 2-byte types.
        fp16: Whether the 2-byte type is fp16.
    """

    stage: int
    zero: DeepSpeedZeroConfig
    weight_bytes: int
    gradient_bytes: int
    reduce_bytes: int
    autocast: bool
    fp16: bool

    @property
    def whole_gradients(self) -> bool:
        """Whether this is BF16_Optimizer, with its two whole gradients."""
        separate = self.weight_bytes != self.gradient_bytes
        return self.stage == 1 and separate and not self.fp16 and not self.offloads_optimizer

    @property
    def keeps_gradients(self) -> bool:
        """Whether each parameter keeps its ``.grad`` from micro-step to micro-step."""
        return self.stage == 0 or self.whole_gradients or (self.stage == 1 and self.weight_bytes == self.gradient_bytes)

    @property
    def offloads_optimizer(self) -> bool:
        """Whether fp32 weights and moments live on the host or on its disk."""
        return _device(self.zero.offload_optimizer) != "none"

    @property
    def offloads_weights(self) -> bool:
        """Whether the rank's share of the weights does too (stage 3)."""
        return self.stage == 3 and _device(self.zero.offload_param) != "none"

    @property
    def swaps(self) -> bool:
        """Whether the optimizer's states are on the host's disk."""
        return _device(self.zero.offload_optimizer) == "nvme"


def _device(offload: Any) -> str:
    return "none" if offload is None else str(getattr(offload.device, "value", offload.device))


def read_engine(path: Path) -> Engine:
    """What the ds_config at ``path`` decides.

    Raises:
        ValueError: If there is no such file, or it cannot work.
    """
    config = read_ds_config(path)
    rounded = [name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")]
    kind = rounded[0] if rounded else "fp32"
    accumulated = config.get("data_types", {}).get("grad_accum_dtype") or kind
    zero = DeepSpeedZeroConfig(**config.get("zero_optimization", {}))
    return Engine(
        stage=int(zero.stage),
        zero=zero,
        weight_bytes=_BYTES[kind],
        gradient_bytes=_BYTES[accumulated],
        reduce_bytes=_BYTES[config.get("communication_data_type") or kind],
        autocast=bool(config.get("torch_autocast", {}).get("enabled")),
        fp16=kind == "fp16",
    )


@dataclass(frozen=True)
class ModelStates:
    """Bytes for the model, of one rank.

    Attributes:
        weights, gradients, optimizer: On the device, always. ``optimizer`` is the fp32 weights and Adam's moments.
        buffers: On the device during forward and backward: ZeRO-3's bucket and what it has gathered.
        buckets: On the device from a backward's first gradient to its end: reduction buckets of ZeRO-1 and 2.
        after_backward: On the device when activations are gone: copies for the reduction or the optimizer step.
        host: On the host.
        disk: On the host's disk.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    buckets: int
    after_backward: int
    host: int
    disk: int


def model_states(engine: Engine, sizes: list[int], world_size: int) -> ModelStates:
    """What DeepSpeed keeps for a model.

    Args:
        engine: From :func:`read_engine`.
        sizes: Elements of each parameter, tied ones once.
        world_size: Ranks.
    """
    number = sum(sizes)
    share = math.ceil(number / world_size)
    if engine.stage == 0:
        copies = min(number, _NO_ZERO_BUCKET) * _reduced(engine, _FP32)
        return ModelStates(_FP32 * number, _FP32 * number, _MOMENTS * number, 0, 0, copies, 0, 0)
    if engine.whole_gradients:
        flat = _FP32 if number <= _NO_ZERO_BUCKET else 0  # one tensor alone is not copied
        gradients = (engine.weight_bytes + _FP32) * number
        after = (flat + engine.reduce_bytes) * number
        return ModelStates(engine.weight_bytes * number, gradients, (_FP32 + _MOMENTS) * share, 0, 0, after, 0, 0)
    if engine.stage == 3:
        return _stage_3(engine, sizes, share)
    return _stages_1_and_2(engine, sizes, share)


def _reduced(engine: Engine, flat: int) -> int:
    """Bytes of an element that is flattened and, where that is another type, cast for the wire."""
    return flat + (engine.reduce_bytes if engine.reduce_bytes != flat else 0)


def _stages_1_and_2(engine: Engine, sizes: list[int], share: int) -> ModelStates:
    number, largest, bucket = sum(sizes), max(sizes), engine.zero.reduce_bucket_size
    weight, separate = engine.weight_bytes, engine.weight_bytes != engine.gradient_bytes
    optimizer = (_FP32 + _MOMENTS) * share
    if engine.stage == 1:
        gradients = engine.gradient_bytes * number
    else:
        gradients = _FP32 * share if separate else 2 * weight * share  # the last micro-step's and the sum
    staged = engine.gradient_bytes if engine.stage == 1 else weight
    buckets = (2 if engine.zero.overlap_comm else 1) * bucket if engine.zero.contiguous_gradients else 0
    copied = max(min(bucket, number), largest)  # what is reduced is flattened; a large parameter is a bucket of its own
    buckets = (buckets + copied) * staged
    # At the step: the share's gradients flat, and in fp32.
    after = 0 if separate and engine.stage == 2 else (weight + _FP32) * share
    if not engine.offloads_optimizer:
        return ModelStates(weight * number, gradients, optimizer, 0, buckets, after, 0, 0)
    host = optimizer + (_FP32 + weight) * share + weight * largest
    return ModelStates(weight * number, gradients, 0, weight * largest, buckets, 0, host, 0)


def _stage_3(engine: Engine, sizes: list[int], share: int) -> ModelStates:
    zero, number, largest, weight = engine.zero, sum(sizes), max(sizes), engine.weight_bytes
    persistent = sum(size for size in sizes if size <= zero.param_persistence_threshold)
    live = gathered_elements(engine, sizes)
    copied = max(min(zero.reduce_bucket_size, number), largest)
    buffers = (live + persistent + zero.reduce_bucket_size + copied) * weight
    gradients = engine.gradient_bytes * share
    optimizer = _MOMENTS * share + (_FP32 * share if weight != _FP32 else 0)
    weights = 0 if engine.offloads_weights else weight * share
    host = disk = 0
    if engine.offloads_weights:
        host += weight * share
    if not engine.offloads_optimizer:
        after = _FP32 * min(share, zero.sub_group_size)
        return ModelStates(weights, gradients, optimizer, buffers, 0, after, host, 0)
    held = (_FP32 + _MOMENTS) * share
    if engine.swaps:
        disk = held
        held = zero.offload_optimizer.buffer_count * _FP32 * min(share, zero.sub_group_size)
    host += held + gradients + _FP32 * share
    return ModelStates(weights, 0, 0, buffers, 0, 0, host, disk)


def gathered_elements(engine: Engine, sizes: list[int]) -> int:
    """The most elements that ZeRO-3 holds gathered.

    A parameter whose use in the backward comes within ``stage3_max_reuse_distance`` elements of that in the forward is
    kept: the last half of that distance. Beside it, the largest parameter (the embeddings are used at both ends) and
    the prefetched ones.
    """
    zero = engine.zero
    return min(sum(sizes), zero.max_reuse_distance // 2 + zero.prefetch_bucket_size + max(sizes))
