"""Logs of a run: ``metrics.jsonl`` and ``eval.jsonl``, a progress line, and TensorBoard through DeepSpeed's monitor."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prealign_ds.files import atomic_write


class Series:
    """A JSON-lines file that a run appends to, one record a line, each with ``stage`` and ``step``."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(_line(record))

    def records(self) -> list[dict[str, Any]]:
        """All records; a line that a crash cut short is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def rewind(self, stage: str, step: int) -> None:
        """Drop what a lost part of ``stage`` logged after ``step``, so that no step is there twice."""
        kept = [r for r in self.records() if r.get("stage") != stage or r["step"] <= step]
        if self.path.exists():
            with atomic_write(self.path) as handle:
                handle.writelines(map(_line, kept))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: float) -> float | None:
    """The number, or None, which JSON can hold, if it is not finite."""
    return value if math.isfinite(value) else None


class StepSums:
    """Sums over the steps between two log lines, kept on the device so that no step waits for them.

    Args:
        device: Where the tensors are.
        earlier: From :meth:`reduce`, saved in a checkpoint between two log lines; a resumed run goes on from there.
    """

    def __init__(self, device: torch.device, earlier: dict[str, list[float]] | None = None):
        self._device = device
        self._earlier = earlier or {}
        self._tensors: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._since = time.perf_counter()
        self.data_wait_s = 0.0
        self.steps = 0
        self.samples = 0

    def add(self, logs: Sequence[dict[str, Tensor]], counts: Counter[str]) -> None:
        """Add the micro-steps of one optimizer step: detached tensors by name, and numbers by name."""
        for log in logs:
            for name, value in log.items():
                known = self._tensors.get(name)
                self._tensors[name] = value.double() if known is None else known + value
        self._counts.update(counts)

    def reduce(self) -> dict[str, list[float]]:
        """The sums over all ranks, and over what a resumed run had; all ranks must call it."""
        parts = {name: tensor.reshape(-1) for name, tensor in sorted(self._tensors.items())}
        for name in sorted(self._counts):
            parts[name] = torch.tensor([float(self._counts[name])], dtype=torch.float64, device=self._device)
        together = torch.cat([*parts.values(), torch.zeros(1, dtype=torch.float64, device=self._device)])
        if dist.get_world_size() > 1:
            dist.all_reduce(together)
        values = iter(together.tolist())
        result = {name: [next(values) for _ in range(len(part))] for name, part in parts.items()}
        for name, earlier in self._earlier.items():
            result[name] = [a + b for a, b in zip(earlier, result.get(name, [0.0] * len(earlier)), strict=True)]
        return result

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since these sums began."""
        return time.perf_counter() - self._since


def is_spike(losses: Sequence[float], loss: float) -> bool:
    """Whether ``loss`` is far above the (up to 50) losses before it: 6 standard deviations, and 5 % of their mean."""
    if len(losses) < 10:
        return False
    mean = statistics.fmean(losses)
    return loss - mean > max(6 * statistics.pstdev(losses), 0.05 * mean)


def progress_line(record: dict[str, Any], num_steps: int) -> str:
    """One line of progress, for people."""
    parts = [f"{record['stage']} {record['step']}/{num_steps}"]
    parts.append("no step applied" if record["loss"] is None else f"loss {record['loss']:.4f}")
    if "alignment_loss" in record:
        parts.append(f"alignment {sum(record['alignment_loss']):.3f}")
        cosines = record["aligned_cosine"]
        parts.append(f"cosine {sum(cosines) / len(cosines):.3f}")
    if record.get("codeswitch_rate") is not None:
        parts.append(f"switched {100 * record['codeswitch_rate']:.2f} %")
    parts += [f"lr {record['learning_rate']:.2e}", f"{record['tokens_per_s']:,.0f} tokens/s"]
    if record.get("mfu") is not None:
        parts.append(f"MFU {100 * record['mfu']:.1f} %")
    parts += [f"wait {record['data_wait_ms']:.1f} ms", f"left {_duration(record['seconds_left'])}"]
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
