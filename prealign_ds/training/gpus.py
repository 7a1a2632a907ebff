"""GPUs: what each kind has, and the share of its peak that training is known to reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: Family, a dash, GiB as it is sold.
        device_name: What CUDA's name of the device holds.
        memory_gib: Memory as CUDA reports it.
        peak_flops: Dense matrix products a second in 16 bits, fp32 accumulation.
        bf16: Whether it computes in bf16.
        mfu: Shares of the peak, low and high, that training of models of 0.1 to 2B parameters reaches.
        link: Bytes a second and direction between two GPUs of a node, nominal.
        network: Bytes a second and direction of one GPU's share of a node's network, nominal; a guess about a cluster.
    """

    name: str
    device_name: str
    memory_gib: float
    peak_flops: float
    bf16: bool
    mfu: tuple[float, float]
    link: float
    network: float


# MFU: llm-foundry publishes 0.45 (125M) to 0.60 (1.3B) on A100 and 0.42 (1.3B) on H100, TinyLlama 0.56 on A100, with
# fused kernels and their own loops. The recipes on one H200 (tools/benchmarks/step.py): 0.45 (150M), 0.42 (400M), and
# 0.32 (1.3B) with recomputation and micro-batches of 4. The lower ends elsewhere allow for transformers' blocks.
GPUS = (
    Gpu("V100-32", "V100", 31.7, 125e12, False, (0.25, 0.45), 150e9, 6e9),
    Gpu("A100-40", "A100", 39.4, 312e12, True, (0.35, 0.55), 300e9, 25e9),
    Gpu("A100-80", "A100", 79.2, 312e12, True, (0.35, 0.55), 300e9, 25e9),
    Gpu("L40S-48", "L40S", 44.4, 362e12, True, (0.25, 0.45), 25e9, 6e9),
    Gpu("H100-80", "H100", 79.1, 989e12, True, (0.32, 0.46), 450e9, 50e9),
    Gpu("H200-141", "H200", 139.8, 989e12, True, (0.32, 0.46), 450e9, 50e9),
    Gpu("B200-180", "B200", 178.4, 2250e12, True, (0.2, 0.4), 900e9, 50e9),
    Gpu("RTX4090-24", "RTX 4090", 23.5, 165e12, True, (0.3, 0.5), 20e9, 3e9),
)


def gpu_named(name: str) -> Gpu:
    """The kind called ``name``; the part before the dash is enough where only one kind has it.

    Raises:
        ValueError: If none or several are.
    """
    found = [gpu for gpu in GPUS if name.lower() in (gpu.name.lower(), gpu.name.lower().partition("-")[0])]
    if len(found) != 1:
        choice = found or GPUS
        raise ValueError(f"--gpus {name}: choose one of {', '.join(gpu.name for gpu in choice)}")
    return found[0]


def peak_flops(device_name: str) -> float | None:
    """The 16-bit peak of the device that CUDA calls ``device_name``; None where it is not known."""
    return next((gpu.peak_flops for gpu in GPUS if gpu.device_name in device_name), None)
