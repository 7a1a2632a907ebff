"""The alignment loss beside what others do: memory on four ranks, time on one, and how both grow.

    python tools/benchmarks/alignment.py             all figures, as JSON
    python tools/benchmarks/alignment.py --repeats 9

Every figure comes from child processes, one a rank (gloo, or nccl where there are as many GPUs), set up as a training
run is. In each, the two sides take turns. Rows have one positive each, half the batch away; tau = 0.1.

Peak memory is what PyTorch's allocator has given out at the highest point of forward and backward together, beyond what
it had before: saved and temporary tensors, temporaries inside operators, buffers of collectives, and the gradients of
the rank's rows, but not the rows themselves. On a CPU it is the running sum of the profiler's record of allocations and
releases, on a GPU ``torch.cuda.max_memory_allocated``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prealign_ds.alignment.batches import WordBatch
from prealign_ds.alignment.loss import layer_alignments
from prealign_ds.cli import run
from prealign_ds.files import read_json, write_json
from prealign_ds.training.environment import tune_cpu
from tools.benchmarks import growth_of, ratios
from tools.benchmarks._turns import run_ranks, seconds_of

ROWS, LAYERS, HIDDEN, TEMPERATURE = 2048, 14, 1024, 0.1
SIDES = ("ours", "theirs")
KINDS = ("bytes", "seconds", "traffic")


def measure_alignment(scratch: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Ours / theirs, over ``repeats`` turns.

    - ``alignment_memory_vs_authors``: peak memory of the rank that needs most, of four; 2,048 rows, 14 layers,
      H = 1024; against :func:`whole_square_loss`.
    - ``alignment_time_vs_pml``: seconds of forward and backward on one rank, one layer of 2,048 rows, H = 1024; against
      pytorch-metric-learning's SupConLoss, which has the same value and gradient. (Its NTXentLoss has them as well when
      each row has one positive, but lists every pair of a positive and a negative.)

    Args:
        scratch: A folder for the child processes' files.
        repeats: Turns of each side.
    """
    memory = _ranks(scratch, 4, "authors", ROWS, LAYERS, repeats, ["bytes"])
    seconds = _ranks(scratch, 1, "pml", ROWS, 1, repeats, ["seconds"])
    return {
        "alignment_memory_vs_authors": _ratios(memory, "bytes"),
        "alignment_time_vs_pml": _ratios(seconds, "seconds"),
    }


def growth(scratch: Path, repeats: int = 3) -> dict[str, dict]:
    """How the costs of a rank grow with the rows of a batch, on one rank, and what they are on more ranks.

    ``alignment`` has our seconds, ``alignment_memory`` our peak bytes. ``details`` has both sides' bytes, seconds and
    traffic by rows and by ranks; traffic is [collectives, bytes that they bring].

    Args:
        scratch: A folder for the child processes' files.
        repeats: Turns of each side; medians are given.
    """
    sizes = {rows: _ranks(scratch, 1, "authors", rows, LAYERS, repeats) for rows in (ROWS // 2, ROWS, 2 * ROWS)}
    by_ranks = {1: sizes[ROWS], **{world: _ranks(scratch, world, "authors", ROWS, LAYERS, repeats) for world in (2, 4)}}
    by_rows = {rows: _medians(found) for rows, found in sizes.items()}
    seconds, memory = ([found["ours"][kind] for found in by_rows.values()] for kind in ("seconds", "bytes"))
    details = {"rows": by_rows, "ranks": {world: _medians(found) for world, found in by_ranks.items()}}
    return {
        "alignment": growth_of(list(by_rows), seconds) | {"details": details},
        "alignment_memory": growth_of(list(by_rows), memory, "bytes"),
    }


def whole_square_loss(states: list[Tensor], batch: WordBatch, temperature: float) -> Tensor:
    """Eq. 2 and 3 as the authors compute them: each rank the whole square of the global batch, by autograd.

    Other ranks' rows arrive without gradient: as each rank computes the loss of all anchors, that of its own rows is
    complete.
    """
    labels_R = _labels(sum(batch.counts), states[0].device)
    own_RR = torch.eye(len(labels_R), dtype=torch.bool, device=states[0].device)
    anchors, positives = torch.nonzero((labels_R[:, None] == labels_R) & ~own_RR, as_tuple=True)
    total = states[0].new_zeros(())
    for layer_rH in states:
        parts = [layer_rH]
        if len(batch.counts) > 1:
            parts = [torch.empty_like(layer_rH) for _ in batch.counts]
            dist.all_gather(parts, layer_rH.detach())
            parts[_rank()] = layer_rH
        units_RH = functional.normalize(torch.cat(parts), dim=-1)
        logits_RR = (units_RH @ units_RH.T / temperature).masked_fill(own_RR, -torch.inf)
        total = total + (logits_RR.logsumexp(1)[anchors] - logits_RR[anchors, positives]).sum() / len(anchors)
    return total


def block_loss(states: list[Tensor], batch: WordBatch, temperature: float) -> Tensor:
    """Ours: this rank's share of the same loss."""
    return layer_alignments(states, batch, temperature).losses_L.sum() / batch.num_anchors


def pml_loss(states: list[Tensor], batch: WordBatch, temperature: float) -> Tensor:
    """pytorch-metric-learning's SupConLoss of every layer."""
    from pytorch_metric_learning.losses import SupConLoss

    loss, labels_R = SupConLoss(temperature=temperature), _labels(sum(batch.counts), states[0].device)
    return torch.stack([loss(layer_rH, labels_R) for layer_rH in states]).sum()


def peak_bytes(step: Callable[[], object], device: torch.device, scratch: Path) -> int:
    """The most memory that ``step`` holds at any time, beyond what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    trace = scratch / f"trace-{_rank()}.json"
    profiler.export_chrome_trace(str(trace))
    events = [event for event in read_json(trace)["traceEvents"] if event["name"] == "[memory]"]
    trace.unlink()
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


class _Traffic(TorchDispatchMode):
    """Counts collectives and the bytes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives = self.received = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.collectives += 1
            self.received += sum(leaf.nbytes for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor))
        return function(*args, **(kwargs or {}))


def traffic_of(step: Callable[[], object]) -> list[int]:
    """[collectives, bytes that they give this rank, its own rows included]."""
    with _Traffic() as traffic:
        step()
    return [traffic.collectives, traffic.received]


def _labels(rows: int, device: torch.device) -> Tensor:
    return torch.arange(rows, device=device) % (rows // 2)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _word_batch(rows: int, rank: int, world: int) -> WordBatch:
    """The share of a rank in a batch in which rows with the same label are positives of each other."""
    own = torch.arange(rows // world)
    columns = own + rank * len(own)
    return WordBatch(
        input_ids_rT=own[:, None],
        mask_rT=torch.ones_like(own)[:, None],
        groups=[(0, len(own), 1)],
        counts=[len(own)] * world,
        positives=(own, (columns + rows // 2) % rows),
        num_positives_R=torch.ones(rows, dtype=torch.int64),
        excluded=(own, columns),
        num_anchors=rows,
        num_positives=rows,
    )


def _ranks(
    scratch: Path, world: int, other: str, rows: int, layers: int, repeats: int, kinds: Sequence[str] = KINDS
) -> list[dict]:
    """Start the ranks; what each has measured."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        run_ranks([__file__, "--worker", folder, other, rows, layers, repeats, *kinds], world, Path(folder))
        return [read_json(Path(folder) / f"{rank}.json") for rank in range(world)]


def _worker(folder: Path, kinds: list[str], other: str, rows: int, layers: int, repeats: int) -> None:
    """One rank: both sides in turns, first checked against each other."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.device_count() >= world
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        tune_cpu(world)
    if world > 1:
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend)
    batch = _word_batch(rows, rank, world).to(device)
    generator = torch.Generator().manual_seed(rank)
    states = [torch.randn(rows // world, HIDDEN, generator=generator).to(device) for _ in range(layers)]
    states = [layer_rH.requires_grad_() for layer_rH in states]
    sides = {"ours": block_loss, "theirs": {"authors": whole_square_loss, "pml": pml_loss}[other]}

    def step(side: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = sides[side](states, batch, TEMPERATURE)
        return loss.detach(), torch.autograd.grad(loss, states)

    _check(*(step(side) for side in sides))
    gauges: dict[str, Callable] = {
        "bytes": partial(peak_bytes, device=device, scratch=folder),
        "seconds": partial(seconds_of, device=device),
        "traffic": traffic_of,
    }
    found: dict[str, dict[str, list]] = {side: {kind: [] for kind in kinds} for side in SIDES}
    for kind in kinds:
        for _ in range(repeats):
            for side in SIDES:
                found[side][kind].append(gauges[kind](partial(step, side)))
    write_json(folder / f"{rank}.json", found)
    if world > 1:
        dist.destroy_process_group()


def _check(ours: tuple[Tensor, tuple[Tensor, ...]], theirs: tuple[Tensor, tuple[Tensor, ...]]) -> None:
    """Raise if the sides differ in the loss of the global batch, or in the gradient of this rank's rows."""
    loss = ours[0].clone()
    if dist.is_initialized():
        dist.all_reduce(loss)
    torch.testing.assert_close(loss, theirs[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-4 * float(theirs[1][0].abs().max()))


def _ratios(ranks: list[dict], kind: str) -> dict[str, float]:
    """Of each turn: the worst rank's figure, ours / theirs; the least, the median and the largest of the turns."""
    ours, theirs = ([max(turn) for turn in zip(*(rank[side][kind] for rank in ranks), strict=True)] for side in SIDES)
    return ratios(ours, theirs)


def _medians(ranks: list[dict]) -> dict[str, dict[str, Any]]:
    """Of each side and kind, the median over the turns on the worst rank; traffic does not vary."""
    return {
        side: {
            "bytes": max(statistics.median(rank[side]["bytes"]) for rank in ranks),
            "seconds": max(statistics.median(rank[side]["seconds"]) for rank in ranks),
            "traffic": max(rank[side]["traffic"][0] for rank in ranks),
        }
        for side in SIDES
    }


def main() -> None:
    """Print all figures, or be one rank."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        folder, other, rows, layers, repeats, *kinds = arguments.worker
        _worker(Path(folder), kinds, other, int(rows), int(layers), int(repeats))
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure_alignment(Path(scratch), arguments.repeats)
        print(json.dumps(figures | {"growth": growth(Path(scratch))}, indent=2))


if __name__ == "__main__":
    run(main)
