"""Logs of a run: ``metrics.jsonl`` and ``eval.jsonl``, a progress line, and what DeepSpeed's monitor writes to."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prealign_ds.alignment.conflict import cosine_and_ratio
from prealign_ds.alignment.stage import AlignmentStage
from prealign_ds.files import atomic_write
from prealign_ds.training.gpus import peak_flops
from prealign_ds.training.plan import StagePlan
from prealign_ds.training.run import Run

_LOGGER = logging.getLogger(__name__)


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


class StageLog:
    """What one stage says: ``metrics.jsonl`` and ``eval.jsonl``, DeepSpeed's monitor, lines for people; rank 0 only.

    Args:
        run: The run.
        plan: The stage in numbers.
        engine: Its DeepSpeed engine.
        flops_per_token: Of training, for the MFU.
    """

    def __init__(self, run: Run, plan: StagePlan, engine: Any, flops_per_token: float):
        self._run, self._plan, self._engine = run, plan, engine
        self._flops_per_token = flops_per_token
        self._alignment: AlignmentStage | None = engine.module.stage
        self._metrics = Series(run.dir / "metrics.jsonl")
        self._evaluations = Series(run.dir / "eval.jsonl")
        self._losses: deque[float] = deque(maxlen=50)
        self._monitor = engine.monitor if engine.monitor is not None and engine.monitor.enabled else None
        if self._monitor is not None and run.settings.log.wandb is not None:
            # The engine's own events count each stage's samples from 0, and W&B takes no step that goes back.
            self._monitor.enabled = False

    @property
    def last_loss(self) -> float | None:
        """The newest LM loss that was logged."""
        return self._losses[-1] if self._losses else None

    def begin(self, step: int, num_parameters: int) -> None:
        """The stage goes on after ``step``: drop what was logged after it, and say what comes."""
        plan = self._plan
        for series in (self._metrics, self._evaluations):
            series.rewind(plan.name, step)
        earlier = [record["loss"] for record in self._metrics.records() if record["stage"] == plan.name]
        self._losses.extend(loss for loss in earlier if loss is not None)
        _LOGGER.info(
            "%s: %s parameters, %d rank(s) on %s, batch %d x %d tokens (micro-batch %d, accumulation %d)%s",
            plan.name,
            f"{num_parameters:,}",
            plan.world_size,
            self._run.world.device.type,
            plan.batch_samples,
            plan.sequence_length,
            plan.micro_batch_size,
            plan.accumulation_steps,
            f", resumed after step {step}" if step else "",
        )
        if (knowledge := self._run.knowledge) is not None:
            share = 100 * knowledge.share(0)
            _LOGGER.info("%s: sentences of facts take %.1f %% of the samples of a period", plan.name, share)
        if self._alignment is not None:
            rows, visits = self._alignment.rows, self._alignment.visits(plan.num_word_batches)
            _LOGGER.info(
                "%s: %d words, %d rows, %d pairs; %d pairs with identical tokens dropped, %d not spellable; "
                "each word is visited %.1f times%s",
                plan.name,
                len(rows.trained_words),
                len(rows),
                len(rows.pairs),
                rows.num_identical,
                rows.num_unspellable,
                visits,
                ""
                if visits >= 10 or plan.name != "align"
                else " (10 or more are advised: raise align.words_per_step or align.budget_share)",
            )

    def write(self, step: int, sample: int, sums: StepSums, totals: dict[str, list[float]]) -> None:
        """Log the steps since the last line.

        Args:
            step: Optimizer steps done in this stage.
            sample: Samples of the stream read.
            sums: Of these steps.
            totals: ``sums.reduce()``.
        """
        plan, seconds = self._plan, sums.seconds
        tokens_per_s = sums.samples * plan.sequence_length / seconds
        applied = totals.get("applied_steps", [0])[0]
        norm = self._engine.get_global_grad_norm()
        record: dict[str, Any] = {
            "stage": plan.name,
            "step": step,
            "samples": sample,
            "tokens": sample * plan.sequence_length,
            "loss": totals["lm_loss_sum"][0] / totals["num_targets"][0] if applied else None,
            "learning_rate": self._engine.optimizer.param_groups[0]["lr"],
            "gradient_norm": float(norm) if norm is not None and math.isfinite(norm) else None,
            "skipped_steps": self._engine.skipped_steps,
            "tokens_per_s": tokens_per_s,
            "mfu": self.mfu(tokens_per_s),
            "step_ms": 1000 * seconds / sums.steps,
            "data_wait_ms": 1000 * sums.data_wait_s / sums.steps,
            "seconds_left": plan.steps_from(sample) * seconds / sums.steps,
        }
        for name in ("alignment_loss", "aligned_cosine", "random_cosine"):
            if name in totals:
                record[name] = [value / totals["aligned_steps"][0] for value in totals[name]]
        if "gradient_dot" in totals:
            products = [totals[name] for name in ("gradient_dot", "lm_gradient", "alignment_gradient")]
            record["gradient_cosine"], record["gradient_ratio"] = cosine_and_ratio(*products)
            layers = [cosine_and_ratio([dot], [lm], [own])[0] for dot, lm, own in zip(*products, strict=True)]
            record["gradient_cosine_by_layer"] = layers
        if totals.get("num_words", [0])[0]:
            switch = self._run.settings.codeswitch
            words, drawn = totals["num_words"][0], totals["num_drawn"][0]
            switched = {name.partition(".")[2]: n[0] for name, n in totals.items() if name.startswith("switched.")}
            coverage = sum(switched.values()) / drawn if drawn else None
            record["codeswitch_rate"] = sum(switched.values()) / words
            record["codeswitch_rate_by_language"] = {name: number / words for name, number in switched.items()}
            record["codeswitch_coverage"] = coverage
            record["codeswitch_expected_rate"] = coverage and coverage * switch.ratio_at(record["tokens"])
        self._metrics.append(record)
        if self._monitor is not None:
            numbers = {name: value for name, value in record.items() if isinstance(value, (int, float))}
            self._monitor.write_events([(f"{plan.name}/{name}", value, sample) for name, value in numbers.items()])
        _LOGGER.info("%s", progress_line(record, step + plan.steps_from(sample)))
        if record["loss"] is not None:
            if is_spike(self._losses, record["loss"]):
                _LOGGER.warning("%s %d: the loss jumped to %.4f", plan.name, step, record["loss"])
            self._losses.append(record["loss"])

    def write_evaluation(self, step: int, tokens: int, found: dict[str, Any]) -> None:
        """Log what :class:`Evaluations` found after ``step``, when the run has read ``tokens`` LM tokens."""
        self._evaluations.append({"stage": self._plan.name, "step": step, "tokens": tokens, **found})
        if "perplexity" in found:
            shown = "  ".join(f"{language} {value:.2f}" for language, value in found["perplexity"].items())
            _LOGGER.info("%s %d: held-out perplexity  %s", self._plan.name, step, shown)
        for period, results in found.get("knowledge", {}).items():
            shown = "  ".join(
                f"{direction} {100 * kinds['all']['accuracy']:.1f} %" for direction, kinds in results.items()
            )
            _LOGGER.info("%s %d: facts of period %s known  %s", self._plan.name, step, period, shown)

    def mfu(self, tokens_per_s: float) -> float | None:
        """Share of the GPUs' 16-bit peak, or None where the peak is not known or stage 1's words are not counted."""
        if self._run.world.device.type != "cuda" or self._alignment is not None:
            return None
        peak = peak_flops(torch.cuda.get_device_name())
        return tokens_per_s * self._flops_per_token / peak / self._plan.world_size if peak else None


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
    if "gradient_cosine" in record:
        parts.append(f"gradients' cosine {record['gradient_cosine']:.3f}")
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
