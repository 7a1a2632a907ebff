"""ZeRO 0, 1, 2 and 3 beside PyTorch's DistributedDataParallel on two ranks: throughput, and on GPUs memory.

    python tools/benchmarks/zero.py [--repeats 5] [dotted.key=value ...]

gloo here, nccl where there are two GPUs; where there is one, one rank. Every side trains the same model on the same
tokens with AdamW, fp32 weights, bf16 autocast where there is bf16, and the same clipping, which their losses check. All
sides are in the same processes and take turns.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from prealign_ds.cli import run
from prealign_ds.files import read_json, write_json
from prealign_ds.reproduction.machine import fitting_ds_config
from prealign_ds.training.environment import World, join_world, leave_world
from prealign_ds.training.loop import StageLoop
from prealign_ds.training.preemption import StopFlag
from prealign_ds.training.watchdog import Watchdog
from tools.benchmarks import ratios, spread
from tools.benchmarks._turns import run_ranks, take_turns
from tools.benchmarks._workload import (
    LOSS_TOLERANCE,
    ROOT,
    BareSteps,
    FirstBatches,
    StageSteps,
    autocasts,
    build_data,
    mean_loss,
    on_gpu,
    recipe_words,
    reference_recipe,
    workload_settings,
)

STAGES = (0, 1, 2, 3)
WARM_STEPS, TURN_STEPS = 3, 4

Side = Callable[[], list[dict[str, Tensor]]]
"""Takes a step; gives what the model logs of each micro-batch."""


def measure_zero(scratch: Path, repeats: int, changes: list[str]) -> dict[str, Any]:
    """Every ZeRO stage beside DDP.

    - ``zero_vs_ddp``: throughput / DDP's, by stage.
    - ``zero_step_s``: seconds of a step, by side.
    - ``zero_peak_bytes``, on GPUs: of the rank that needs most, weights and optimizer included, by side.

    Args:
        scratch: An empty folder.
        repeats: Turns of each side.
        changes: Overrides for the recipe.
    """
    world = min(2, torch.cuda.device_count()) if on_gpu() else 2
    build_data(scratch / "data")
    recipe, own = reference_recipe()
    own += [] if on_gpu() else ["pretrain.micro_batch_size=16"]  # two ranks share the quickstart's batch
    words = recipe_words(
        scratch / "data", recipe, scratch, [*own, "codeswitch.mode=off", "log.tensorboard=false", *changes]
    )
    write_json(scratch / "task.json", {"words": words, "repeats": repeats})
    run_ranks([__file__, "--worker", scratch], world, scratch)
    ranks = [read_json(scratch / f"{rank}.json") for rank in range(world)]
    seconds = ranks[0]["seconds"]  # all ranks wait for each other at the end of a step
    found: dict[str, Any] = {
        "zero_world_size": world,
        "zero_vs_ddp": {f"zero_{stage}": ratios(seconds["ddp"], seconds[f"zero_{stage}"]) for stage in STAGES},
        "zero_step_s": {side: spread(values) for side, values in seconds.items()},
    }
    if on_gpu():
        found["zero_peak_bytes"] = {side: max(rank["peak_bytes"][side] for rank in ranks) for side in seconds}
    return found


class DDP:
    """The same model in DistributedDataParallel, with PyTorch's fused AdamW, as PyTorch's documentation builds it.

    Args:
        loop: Of an engine with the same model; its model is built anew.
        batches: Gives the next step's micro-batches.
    """

    def __init__(self, loop: StageLoop, batches: FirstBatches):
        self._world, self._optimizer_settings = loop.run.world, loop.settings.optimizer
        self._scale = loop.plan.loss_scale(loop.plan.batch_samples) / loop.plan.accumulation_steps
        self._batches = batches
        on_device = [self._world.device] if self._world.device.type == "cuda" else None
        module = loop.run.module("pretrain", loop.kernels).to(self._world.device)
        self._autocasts = autocasts(loop.run.settings)
        self._model = DistributedDataParallel(module, on_device)
        numbers = self._optimizer_settings
        parameters = list(self._model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": numbers.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, numbers.learning_rate, numbers.betas, numbers.eps, fused=True)

    def __call__(self) -> list[dict[str, Tensor]]:
        """Take a step."""
        batches, logs = self._batches(), []
        for place, (inputs, targets) in enumerate(batches):
            self._model.require_backward_grad_sync = place == len(batches) - 1  # what its no_sync() sets
            with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocasts):
                loss, log = self._model(inputs, targets, self._scale)
            loss.backward()
            logs.append(log)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._optimizer_settings.gradient_clipping)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return logs


def _worker(folder: Path) -> None:
    """One rank: build every side, check that they train alike, let them take turns."""
    task = read_json(folder / "task.json")
    world = join_world()
    stop, watchdog = StopFlag(world), Watchdog(world, 1800)
    sides: dict[str, Side] = {}
    losses: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}

    def add(name: str, side: Side, held: int) -> None:
        sides[name] = side
        losses[name] = [mean_loss(side()) for _ in range(WARM_STEPS)]
        torch.testing.assert_close(
            torch.tensor(losses[name]), torch.tensor(losses["zero_0"]), rtol=LOSS_TOLERANCE, atol=0
        )
        peaks[name] = _peak() - held

    for stage in STAGES:
        held = _held()
        loop = _start(folder / f"zero_{stage}-{world.rank}", stage, task["words"], world, stop, watchdog)
        batches = FirstBatches(loop, WARM_STEPS)
        add(f"zero_{stage}", BareSteps(loop, batches), held)
    held = _held()
    add("ddp", DDP(loop, FirstBatches(loop, WARM_STEPS)), held)
    seconds = take_turns(sides, TURN_STEPS, task["repeats"], world.device)
    write_json(folder / f"{world.rank}.json", {"seconds": seconds, "peak_bytes": peaks, "losses": losses})
    watchdog.close()
    leave_world()


def _start(folder: Path, stage: int, words: list[str], world: World, stop: StopFlag, watchdog: Watchdog) -> StageLoop:
    """The loop of a run with a ZeRO stage, fp32 weights and bf16 autocast where there is bf16."""
    folder.mkdir()
    base = "ds_configs/cpu.json" if on_gpu() else fitting_ds_config().removeprefix("deepspeed=")
    config = read_json(ROOT / base) | {"zero_optimization": {"stage": stage}}
    write_json(folder / "ds_config.json", config)
    settings = workload_settings([*words, f"run_dir={folder / 'run'}", f"deepspeed={folder}/ds_config.json"])
    return StageSteps(settings, world, stop, watchdog).loop


def _held() -> int:
    """Bytes on the GPU before a side is there; what it adds at most is counted from here on."""
    if not on_gpu():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if on_gpu() else 0


def main() -> None:
    """Print all figures as JSON, or be one rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("changes", nargs="*", help="dotted.key=value, for the recipe")
    arguments = parser.parse_args()
    if arguments.worker:
        _worker(arguments.worker)
        return
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure_zero(Path(scratch), arguments.repeats, arguments.changes), indent=2))


if __name__ == "__main__":
    run(main)
