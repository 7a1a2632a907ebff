"""Every benchmark, each in a process of its own: a table, and OUTPUT with all figures as JSON.

    python tools/bench.py [--only NAME ...] [--repeats N] [--output runs/bench.json]

A ratio is ours / theirs, measured turn about: of time or memory for fetch, alignment and saving (less is better), of
throughput for step, trainer and zero (more is better). Where it was stopped, the same command goes on: what is in
OUTPUT with the same number of repeats is not measured again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run
from prealign_ds.files import read_json, write_json

FOLDER = Path(__file__).resolve().parent / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def main() -> None:
    """Measure what is asked for and not there yet, and show all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--again", action="store_true", help="measure what is there too")
    arguments = parser.parse_args()
    found = read_json(arguments.output) if arguments.output.exists() else {}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        known = found.get("measured", {}).get(name, {})
        if known.get("repeats") == arguments.repeats and not arguments.again:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        begun = time.monotonic()
        merge(found, measure(name, arguments.repeats))
        how = {"repeats": arguments.repeats, "seconds": round(time.monotonic() - begun), "machine": _machine()}
        found["measured"] = found.get("measured", {}) | {name: how}
        write_json(arguments.output, found)
    _show(found)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """The figures that a benchmark prints as its last thing: one JSON object."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--repeats", str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: ended with {done.returncode}; its messages are above")
    return json.loads(done.stdout[max(0, done.stdout.rfind("\n{\n")) :])


def merge(found: dict[str, Any], figures: dict[str, Any]) -> None:
    """Put a benchmark's figures among the others'; several have a ``growth``, each of costs of its own."""
    growth = found.get("growth", {}) | figures.get("growth", {})
    found |= figures | ({"growth": growth} if growth else {})


def _machine() -> dict[str, Any]:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line for line in lines if line.startswith("model name")), platform.processor())
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu.partition(":")[2].strip() or cpu, "cores": cores, "gpus": gpus, "torch": torch.__version__}


def _show(found: dict[str, Any]) -> None:
    print(f"{'':40}{'min':>12}{'median':>12}{'max':>12}")
    for name, spread in _spreads(found):
        print(f"{name:40}" + "".join(f"{spread[key]:12,.4g}" for key in ("min", "median", "max")))
    print(f"\n{'growth':32}{'exponent':>8}  cost at size")
    for name, cost in found.get("growth", {}).items():
        points = zip(cost["sizes"], cost["cost"], strict=True)
        shown = ", ".join(f"{value:,.4g} {cost['unit']} at {size:,}" for size, value in points)
        print(f"{name:32}{cost['exponent']:8.2f}  {shown}")


def _spreads(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """The figures that vary, by their names; those of a table are named ``table.row``."""
    for name, value in found.items():
        if isinstance(value, dict) and value.keys() == {"min", "median", "max"}:
            yield prefix + name, value
        elif isinstance(value, dict) and name not in ("growth", "measured"):
            yield from _spreads(value, f"{prefix}{name}.")


if __name__ == "__main__":
    run(main)
