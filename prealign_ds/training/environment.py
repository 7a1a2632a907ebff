"""The process around a run: threads and allocator on a CPU, ranks, the world."""

from __future__ import annotations

import ctypes
import os
import socket
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class World:
    """This process among the ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes logs and models."""
        return self.rank == 0


def join_world(expected: int | None = None) -> World:
    """Set up the process and join the other ranks; without a launcher, be the only one.

    Args:
        expected: Number of ranks that the configuration asks for.

    Raises:
        ValueError: If the number of ranks is not the expected one.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    size = int(os.environ["WORLD_SIZE"])
    if expected is not None and size != expected:
        raise ValueError(
            f"world_size: the configuration asks for {expected} ranks, the launcher started {size}; "
            "change the launch line (--num_gpus, --num_nodes, hostfile) or the key world_size"
        )
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        tune_cpu(int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))))
    else:
        accelerator.set_device(local_rank)
    if not dist.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return World(dist.get_rank(), dist.get_world_size(), torch.device(accelerator.device_name(local_rank)))


def tune_cpu(local_ranks: int) -> None:
    """Share the cores between the ranks of this machine, and keep freed memory in the process.

    glibc gives every large activation back to the kernel and faults it in again, which costs a factor of 2 to 7.
    """
    if "OMP_NUM_THREADS" not in os.environ or int(os.environ["OMP_NUM_THREADS"]) == 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
    except (OSError, AttributeError):
        return  # another C library, which has its own ways


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
