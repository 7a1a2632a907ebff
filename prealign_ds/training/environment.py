"""The process around a run: threads and allocator on a CPU, ranks, the world."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch.utils.cpp_extension import get_default_build_root

_LOGGER = logging.getLogger(__name__)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class World:
    """This process among the ranks.

    Attributes:
        rank: Number of this rank.
        size: Ranks.
        device: Where this rank computes.
        control: The group for small messages between the processes, which never wait for a GPU.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes logs and models."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; all ranks must call it."""
        if self.size == 1:
            return flag
        together = torch.tensor([int(flag)])
        dist.all_reduce(together, dist.ReduceOp.MAX, group=self.control)
        return bool(together)

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` on rank 0 alone and give all ranks its result or its error; all ranks must call it."""
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = function()
            except (ValueError, OSError) as error:
                answer[1] = str(error)
        if self.size > 1:
            dist.broadcast_object_list(answer, src=0, group=self.control)
        if answer[1] is not None:
            raise ValueError(answer[1])
        return answer[0]


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
        os.environ["MASTER_PORT"] = str(free_port())
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
        use_own_ninja()
        clear_abandoned_builds(Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()))
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        if accelerator.device_name() == "cpu":
            _unlink_shared_buffer()
    control = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    device = torch.device(accelerator.device_name(local_rank))
    return World(dist.get_rank(), dist.get_world_size(), device, control)


def leave_world() -> None:
    """End the ranks' ways to each other; all ranks call it when they are done.

    Left to the interpreter's end, their threads now and then abort a finished rank.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def use_own_ninja() -> None:
    """Put the ninja that is installed beside this Python before any other of the machine.

    PyTorch takes the first on the PATH, which holds this environment in some starts and not in others. Two versions of
    ninja do not know each other's records: at every change all of DeepSpeed's operators would be compiled again.
    """
    folder = Path(sys.executable).parent
    if (folder / "ninja").is_file() and shutil.which("ninja") != str(folder / "ninja"):
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


def clear_abandoned_builds(root: Path) -> None:
    """Remove the locks of compilations that were killed.

    DeepSpeed compiles its operators at the first start, and PyTorch waits for such a lock without end and without a
    word. Here, each process holds a shared lock (flock) in ``root`` until it ends, however it ends: who can have that
    one alone knows that no other run compiles.

    Args:
        root: PyTorch's folder of compiled extensions.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        presence = os.open(root / "prealign_ds.lock", os.O_RDWR | os.O_CREAT)  # open until the process ends
        try:
            fcntl.flock(presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        for lock in sorted(root.glob("**/lock")):
            if alone:
                _LOGGER.warning("%s: left by a compilation that was killed; removed", lock)
                lock.unlink()
            else:
                _LOGGER.info("%s: another run compiles; if none does, delete this file: this run waits for it", lock)
        fcntl.flock(presence, fcntl.LOCK_SH)
    except OSError as error:  # a file system without flock, a read-only folder
        _LOGGER.info("%s: cannot look for abandoned compilations (%s)", root, error)


def _unlink_shared_buffer() -> None:
    """Take away the name of this rank's buffer for reductions within a node, now that all ranks have it open.

    It lives as long as they do. With its name it would outlive them: DeepSpeed leaves 69 MB of memory for each rank of
    each run until the machine starts again.
    """
    dist.barrier()
    owner = f"{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{dist.get_rank()}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{owner}").unlink(missing_ok=True)


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


def free_port() -> int:
    """A TCP port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
