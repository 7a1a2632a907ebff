"""A training step with everything on beside a bare DeepSpeed loop, what code-switching costs, and how steps grow.

    python tools/benchmarks/step.py [--repeats 5] [dotted.key=value ...]

Ours is the loop of a run in stage 2 with a log line a step: stream, code-switching, watchdog, stop flag, learning rate,
sums, guards. The bare loop is ``engine(...)``, ``engine.backward``, ``engine.step`` on tensors that are on the device
beforehand, with the same model, loss and DeepSpeed configuration. Both are in one process and take turns; that they
compute the same is checked by their losses.

On a CPU the sizes are the quickstart's model and its halves and doubles; on a GPU the paper's 150M, 400M and 1.3B. Each
size has a process of its own. ``key=value`` changes the recipe of all of them.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from prealign_ds.cli import run
from prealign_ds.files import read_json, write_json
from prealign_ds.model import num_parameters
from prealign_ds.training.environment import join_world, leave_world
from prealign_ds.training.preemption import StopFlag
from prealign_ds.training.watchdog import Watchdog
from tools.benchmarks import growth_of, ratios, spread
from tools.benchmarks._turns import run_ranks, take_turns
from tools.benchmarks._workload import (
    LOSS_TOLERANCE,
    BareSteps,
    FirstBatches,
    StageSteps,
    build_data,
    mean_loss,
    on_gpu,
    recipe_words,
    reference_recipe,
    workload_settings,
)

WARM_STEPS, TURN_STEPS, WAIT_STEPS = 3, 4, 10


class Size(NamedTuple):
    """A model: its name, its recipe, what is changed there, and whether all is measured or only seconds."""

    name: str
    recipe: str
    changes: list[str]
    all: bool = False


def sizes() -> list[Size]:
    """What is measured on this machine; the first is the reference."""
    recipe, changes = reference_recipe()
    if on_gpu():
        names = ["150m", "400m", "1.3b"]
        return [Size(name, f"en_clone_{name}", changes, f"en_clone_{name}" == recipe) for name in names]
    widths = {256: True, 128: False, 512: False}
    return [
        Size(f"4x{width}", recipe, [*changes, f"model.hidden_size={width}", f"model.num_heads={width // 64}"], first)
        for width, first in widths.items()
    ]


def measure_step(scratch: Path, repeats: int, changes: list[str]) -> dict[str, Any]:
    """All figures.

    - ``step_vs_bare``: throughput of ours / of the bare loop, at the first size; here and below, the words are known by
      then, as they are in a long run.
    - ``codeswitch_cost``: of each size, the share by which a step with code-switching is longer than one without.
    - ``data_wait_share``: share of a step that waits for data, at the first size, by number of workers.
    - ``step_tokens_per_s``; on a GPU ``step_mfu`` and ``step_peak_bytes``: of ours, by size.
    - ``growth``: seconds of a step by parameters.

    Args:
        scratch: An empty folder.
        repeats: Turns of each side.
        changes: Overrides for all recipes.
    """
    build_data(scratch / "data")
    found: dict[str, dict[str, Any]] = {}
    for size in sizes():
        folder = scratch / size.name
        folder.mkdir()
        words = recipe_words(scratch / "data", size.recipe, folder, [*size.changes, *changes])
        write_json(folder / "task.json", {"words": words, "all": size.all, "repeats": repeats})
        run_ranks([__file__, "--worker", folder], 1, folder)
        found[size.name] = read_json(folder / "found.json")
        print(f"{size.name}: {found[size.name]}", file=sys.stderr, flush=True)  # to keep, should a larger one not fit
    first = next(iter(found.values()))
    in_order = sorted(found.values(), key=lambda one: one["parameters"])
    costs = [statistics.median(one["seconds"]["ours"]) for one in in_order]
    return {
        "step_vs_bare": ratios(first["seconds"]["bare"], first["seconds"]["ours"]),
        "codeswitch_cost": {name: _cost(one["seconds"]) for name, one in found.items()},
        "data_wait_share": first["data_wait_share"],
        **_by_size(found, "tokens_per_s"),
        **_by_size(found, "mfu"),
        **_by_size(found, "peak_bytes"),
        "growth": {"step": growth_of([one["parameters"] for one in in_order], costs)},
    }


def _cost(seconds: dict[str, list[float]]) -> dict[str, float]:
    return spread([ours / plain - 1 for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)])


def _by_size(found: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    values = {name: figures[key] for name, figures in found.items() if key in figures}
    return {f"step_{key}": values} if values else {}


def _worker(folder: Path) -> None:
    """Measure one size, and leave it in ``found.json``."""
    task = read_json(folder / "task.json")
    world = join_world()
    stop, watchdog = StopFlag(world), Watchdog(world, 1800)

    def start(name: str, *changes: str) -> StageSteps:
        settings = workload_settings([*task["words"], f"run_dir={folder / name}", *changes])
        return StageSteps(settings, world, stop, watchdog)

    def warm(side: Callable[[], Any]) -> list[Any]:
        return [side() for _ in range(WARM_STEPS)]

    ours = start("ours")
    ours.learn_words(WARM_STEPS + TURN_STEPS * task["repeats"])
    warm(ours)
    found: dict[str, Any] = {"parameters": num_parameters(ours.loop.module.model)}
    if on_gpu():
        found["peak_bytes"] = torch.cuda.max_memory_allocated()  # before another engine is there
    sides: dict[str, Callable[[], Any]] = {"ours": ours, "plain": start("plain", "codeswitch.mode=off")}
    warm(sides["plain"])
    if task["all"]:
        bare = start("bare", "log.tensorboard=false").loop
        sides["bare"] = BareSteps(bare, FirstBatches(bare, WARM_STEPS))
        losses = torch.tensor([mean_loss(logs) for logs in warm(sides["bare"])])
        torch.testing.assert_close(torch.tensor(ours.series("loss")), losses, rtol=LOSS_TOLERANCE, atol=0)
    found["seconds"] = take_turns(sides, TURN_STEPS, task["repeats"], world.device)
    speeds = [ours.loop.plan.batch_tokens / seconds for seconds in found["seconds"]["ours"]]
    found["tokens_per_s"] = spread(speeds)
    shares = [share for share in map(ours.loop.log.mfu, speeds) if share is not None]
    if shares:
        found["mfu"] = spread(shares)
    if task["all"]:
        shares_of = {f"{n}_workers": start(f"{n}_workers", f"data.num_workers={n}") for n in (1, 2)}
        found["data_wait_share"] = {name: _data_wait_share(steps) for name, steps in shares_of.items()}
    write_json(folder / "found.json", found)
    leave_world()


def _data_wait_share(ours: StageSteps) -> dict[str, float]:
    """Of each step, alone: another side would give the workers time to read ahead."""
    steps = WARM_STEPS + WAIT_STEPS
    ours.learn_words(steps)
    for _ in range(steps):
        ours()
    waits, lengths = ours.series("data_wait_ms"), ours.series("step_ms")
    return spread([wait / length for wait, length in zip(waits, lengths, strict=True)][WARM_STEPS:])


def main() -> None:
    """Print all figures as JSON, or be the process of one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("changes", nargs="*", help="dotted.key=value, for the recipes of all sizes")
    arguments = parser.parse_args()
    if arguments.worker:
        _worker(arguments.worker)
        return
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure_step(Path(scratch), arguments.repeats, arguments.changes), indent=2))


if __name__ == "__main__":
    run(main)
