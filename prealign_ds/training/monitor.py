"""Logs of a run: ``metrics.jsonl`` and ``eval.jsonl``, a progress line, and TensorBoard through DeepSpeed's monitor."""

from __future__ import annotations

import json
import time
from collections import Counter
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
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")

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
                handle.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)


class StepSums:
    """Sums over the steps between two log lines, kept on the device so that no step waits for them."""

    def __init__(self, device: torch.device):
        self._device = device
        self._tensors: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.data_wait_s = 0.0
        self.steps = 0
        self._since = time.perf_counter()

    def add(self, log: dict[str, Tensor]) -> None:
        """Add one micro-step's detached tensors, by name."""
        for name, value in log.items():
            known = self._tensors.get(name)
            self._tensors[name] = value.double() if known is None else known + value

    def reduce(self) -> dict[str, list[float]]:
        """The sums over all ranks, as numbers; all ranks must call it."""
        names = sorted(self._tensors)
        flat = [self._tensors[name].reshape(-1) for name in names]
        counts = torch.tensor([float(self.counts[name]) for name in sorted(self.counts)], dtype=torch.float64)
        together = torch.cat([*flat, counts.to(self._device)])
        if dist.get_world_size() > 1:
            dist.all_reduce(together)
        values = together.tolist()
        result, place = {}, 0
        for name, part in zip(names, flat, strict=True):
            result[name] = values[place : place + len(part)]
            place += len(part)
        for name in sorted(self.counts):
            result[name] = [values[place]]
            place += 1
        return result

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since these sums began."""
        return time.perf_counter() - self._since


def progress_line(record: dict[str, Any], num_steps: int) -> str:
    """One line of progress, for people."""
    parts = [f"{record['stage']} {record['step']}/{num_steps}", f"loss {record['loss']:.4f}"]
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
