"""How fast the words of a corpus are counted on all cores, and in how much memory, as the text grows.

    python tools/benchmarks/counting.py [--repeats 1] [--gigabytes 0.1 1 5]

The text is made up, 100 MB of it, again and again; each size is counted by a process of its own. Memory is the largest
that this process or one of its workers had.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from prealign_ds.alignment.counting import count_words
from prealign_ds.cli import run
from tools.benchmarks import growth_of, spread
from tools.benchmarks._made_up import first_characters, made_up_texts

# Every worker imports this file: nothing here takes long to import.

DISTINCT_CHARACTERS = 100_000_000
GIGABYTES = (0.1, 1.0, 5.0)


def measure_counting(repeats: int, gigabytes: Sequence[float] = GIGABYTES) -> dict[str, Any]:
    """``count_mb_per_s`` and ``count_peak_mb`` (of the largest process) by size in GB, and ``growth`` of both.

    Args:
        repeats: Processes for each size.
        gigabytes: Sizes of the text, in billions of bytes.
    """
    found: dict[float, list[dict[str, float]]] = {size: [] for size in gigabytes}
    for _ in range(repeats):
        for size in gigabytes:
            command = [sys.executable, __file__, "--one", str(size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[size].append(json.loads(done.stdout.splitlines()[-1]))
    speeds = {f"{size:g}": spread([1000 * size / one["seconds"] for one in all]) for size, all in found.items()}
    peaks = {f"{size:g}": spread([one["peak_mb"] for one in all]) for size, all in found.items()}
    sizes = [round(1e9 * size) for size in gigabytes]
    growth = {
        "count_words": growth_of(sizes, [min(one["seconds"] for one in all) for all in found.values()]),
        "count_words_memory": growth_of(sizes, [peak["median"] for peak in peaks.values()], "MB"),
    }
    return {"count_mb_per_s": speeds, "count_peak_mb": peaks, "growth": growth}


def _count(size: float) -> dict[str, float]:
    distinct = list(first_characters(made_up_texts(), round(min(DISTINCT_CHARACTERS, 1e9 * size))))
    began = time.perf_counter()
    counts = count_words(_repeated(distinct, round(1e9 * size)), len(os.sched_getaffinity(0)))
    seconds = time.perf_counter() - began
    assert counts
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "peak_mb": max(resource.getrusage(one).ru_maxrss for one in who) / 1000}


def _repeated(texts: Sequence[str], size: int) -> Iterator[str]:
    """``texts`` again and again, until they have ``size`` bytes; they are ASCII."""
    return first_characters(cycle(texts), size)


def main() -> None:
    """Print all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="processes for each size")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=GIGABYTES, help="sizes of the text")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_count(arguments.one)))
        return
    print(json.dumps(measure_counting(arguments.repeats, arguments.gigabytes), indent=2))


if __name__ == "__main__":
    run(main)
