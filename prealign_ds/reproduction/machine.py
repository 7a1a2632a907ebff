"""How runs are started on this machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch


def deepspeed_command(ranks: int) -> list[str]:
    """The words that start a launcher on so many ranks of this machine, beside others that run there."""
    from prealign_ds.training.environment import free_port

    beside_python = shutil.which("deepspeed", path=str(Path(sys.executable).parent))
    return [beside_python or "deepspeed", "--num_gpus", str(ranks), "--master_port", str(free_port())]


def fitting_ds_config() -> str:
    """Override that names a DeepSpeed file for this machine: for its GPU, else in bf16 where the CPU has it."""
    if torch.cuda.is_available():
        name = "zero1_bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "zero1_fp16"
    else:
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        name = "cpu" if "amx_bf16" in flags or "avx512_bf16" in flags else "cpu_fp32"
    return f"deepspeed=ds_configs/{name}.json"
