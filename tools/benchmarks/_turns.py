"""Taking turns: ranks in processes of their own, and sides that alternate within one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from prealign_ds.training.environment import free_port


def run_ranks(words: Sequence[object], world: int, logs: Path) -> None:
    """Run a Python program once for each rank, with the variables that a launcher sets, and wait for all.

    Args:
        words: The program and its arguments.
        world: Ranks.
        logs: Folder for what they print.

    Raises:
        RuntimeError: If one fails; with the ends of what they have printed.
    """
    port = free_port()
    outputs = [logs / f"rank-{rank}.log" for rank in range(world)]
    started = []
    for rank, output in enumerate(outputs):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1"} | {key: str(value) for key, value in place.items()}
        with output.open("w") as log:
            command = [sys.executable, *map(str, words)]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    if any([process.wait() for process in started]):
        raise RuntimeError("\n".join(output.read_text()[-2000:] for output in outputs))


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of ``step``, from all ranks' start to the last rank's end."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        if dist.is_initialized():
            dist.barrier()

    wait()
    began = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - began


def take_turns(
    sides: Mapping[str, Callable[[], object]], steps: int, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a step of each side, in each of its turns.

    The sides alternate step by step, in order and then in reverse, so that a machine that slows down favours none.

    Args:
        sides: What one step of each side is. They are warm.
        steps: Steps in a turn, of which the mean is given.
        repeats: Turns of each side.
        device: Where they compute.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        turn = dict.fromkeys(sides, 0.0)
        for step in range(steps):
            for name in list(sides)[:: -1 if step % 2 else 1]:
                turn[name] += seconds_of(sides[name], device) / steps
        for name, mean in turn.items():
            seconds[name].append(mean)
    return seconds
