"""Whole runs that signals stop and that go on, many in one process group; started by the deepspeed launcher.

Usage: worker_stops.py RECIPE SCENARIOS.json [--stop-here], a list of [run_dir, overrides, stops, poisoned]. A stop is
the number of times that the loop asks whether to stop before SIGTERM comes, to the last rank alone. --stop-here does
not go on afterwards. ``poisoned`` are the training forwards of each stage whose loss is not a number, on the last rank.
"""

import gc
import itertools
import json
import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from prealign_ds.recipe import load_settings
from prealign_ds.training.environment import join_world, leave_world
from prealign_ds.training.loop import train
from prealign_ds.training.preemption import Preempted, StopFlag
from prealign_ds.training.run import Run


class SignalledFlag(StopFlag):
    """Sends its own process a real signal at a chosen question."""

    def __init__(self, world, stop):
        super().__init__(world)
        self._left = stop if world.rank == world.size - 1 else None

    def check(self):
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        super().check()


class PoisonedRun(Run):
    """Some of its losses, and so the gradients, are not numbers."""

    def __init__(self, settings, world, poisoned):
        super().__init__(settings, world)
        self._poisoned = poisoned if world.rank == world.size - 1 else []

    def module(self, stage, kernels):
        module, forwards = super().module(stage, kernels), itertools.count()

        def poison(module, arguments, output):
            if module.training and next(forwards) in self._poisoned:
                return output[0] * float("nan"), output[1]
            return output

        module.register_forward_hook(poison)
        return module


def main():
    recipe, scenarios = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    world = join_world()
    for run_dir, overrides, stops, poisoned in json.loads(Path(scenarios).read_text()):
        settings = load_settings(recipe, [f"run_dir={run_dir}", *overrides])
        for stop in stops if "--stop-here" in sys.argv else [*stops, None]:
            try:
                train(PoisonedRun(settings, world, poisoned), SignalledFlag(world, stop))
                assert stop is None, f"{run_dir}: the run ended before the signal came"
            except Preempted:
                assert stop is not None
            gc.collect()


if __name__ == "__main__":
    main()
    leave_world()
