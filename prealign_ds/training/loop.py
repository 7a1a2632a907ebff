"""The training loop, the same for both stages: read, forward, backward, step, log, evaluate, save."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from prealign_ds.config import StageSettings
from prealign_ds.files import atomic_write
from prealign_ds.model import num_parameters
from prealign_ds.randomness import key_of
from prealign_ds.recipe import check_same_run, dump_settings
from prealign_ds.stream.loader import LMBatch, MicroBatches, make_loader
from prealign_ds.training.checkpoint import load_checkpoint, save_checkpoint, save_model
from prealign_ds.training.engine import engine_config, full_weights, set_learning_rate, start_engine
from prealign_ds.training.monitor import Series, StepSums, progress_line
from prealign_ds.training.plan import StagePlan, learning_rate, plan_stages
from prealign_ds.training.run import Run

_LOGGER = logging.getLogger(__name__)
_BF16_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "V100": 125e12}


def train(run: Run) -> None:
    """Run every stage of the configuration that is not done yet, and leave the final model in ``run_dir/model``."""
    plans = plan_stages(run.settings, run.world.size)
    check_same_run(run.settings)
    total = sum(plan.num_tokens for plan in plans)
    for plan in plans:
        result = run.dir / ("align" if plan.name == "align" else "model")
        if result.is_dir():
            _LOGGER.info("%s: already done, %s exists", plan.name, result)
            continue
        share = 100 * plan.num_tokens / total
        _LOGGER.info("%s: %d steps, %s LM tokens (%.1f %%)", plan.name, plan.num_steps, f"{plan.num_tokens:,}", share)
        loop = StageLoop(run, plan)
        torch.distributed.barrier()  # nothing is written before every rank has found everything in order
        if run.world.is_main:
            with atomic_write(run.dir / "config.yaml") as handle:
                handle.write(dump_settings(run.settings))
        loop.fit(result)
        del loop
        gc.collect()
        get_accelerator().empty_cache()


class StageLoop:
    """One stage on one engine.

    Args:
        run: The run.
        plan: The stage in numbers.
    """

    def __init__(self, run: Run, plan: StagePlan):
        self.run, self.plan = run, plan
        self.settings: StageSettings = getattr(run.settings, plan.name)
        self.stream = run.stream(plan.name)
        self.module = run.module(plan.name)
        self.alignment = self.module.stage
        self._num_parameters = num_parameters(self.module.model)  # before ZeRO-3 takes them apart
        self._flops_per_token = self._count_flops()
        config = engine_config(run.settings.deepspeed, plan, self.settings.optimizer)
        if run.settings.log.tensorboard:
            folder = str(run.dir / "tensorboard")
            config["tensorboard"] = {"enabled": True, "output_path": folder, "job_name": plan.name}
        self.engine = start_engine(self.module, config)
        self.metrics = Series(run.dir / "metrics.jsonl")
        self.evaluations = Series(run.dir / "eval.jsonl")
        languages = self.run.table.languages if self.stream.switcher else []
        self._count_names = ["num_words", "num_drawn", *(f"switched.{language}" for language in languages)]
        self._state = {
            "stage": plan.name,
            "fingerprint": run.fingerprint(self.stream),
            "world_size": plan.world_size,
            "batch_samples": plan.batch_samples,
            "first_sample": plan.first_sample,
        }

    def fit(self, result: Path) -> None:
        """Train from the newest checkpoint, or the start, to the end of the stage; save its weights in ``result``."""
        checkpoints = self.run.dir / "checkpoints" / self.plan.name
        step = load_checkpoint(self.engine, checkpoints, self._state)
        if self.run.world.is_main:
            self._announce(step)
            self.metrics.rewind(self.plan.name, step)
            self.evaluations.rewind(self.plan.name, step)
        batches = self._batches(step)
        sums = StepSums(self.run.world.device)
        while step < self.plan.num_steps:
            self._step(step, batches, sums)
            step += 1
            if step % self.run.settings.log.every_steps == 0 or step == self.plan.num_steps:
                self._log(step, sums)
                sums = StepSums(self.run.world.device)
            if self._due(step, self.run.settings.evaluation.every_tokens):
                self._evaluate(step)
            if self._due(step, self.run.settings.checkpoint.every_tokens):
                keep = self.run.settings.checkpoint.keep
                save_checkpoint(self.engine, checkpoints, step, self._state, self.run.describe(), keep)
        self._finish(result)

    def _announce(self, step: int) -> None:
        world, plan = self.run.world, self.plan
        _LOGGER.info(
            "%s: %s parameters, %d rank(s) on %s, batch %d x %d tokens (micro-batch %d, accumulation %d)%s",
            plan.name,
            f"{self._num_parameters:,}",
            plan.world_size,
            world.device.type,
            plan.batch_samples,
            plan.sequence_length,
            plan.micro_batch_size,
            plan.accumulation_steps,
            f", resumed after step {step}" if step else "",
        )
        if self.alignment is not None:
            rows, visits = self.alignment.rows, self.alignment.visits(plan.num_steps)
            _LOGGER.info(
                "align: %d words, %d rows, %d pairs; %d pairs with identical tokens dropped, %d not spellable; "
                "each word is visited %.1f times%s",
                len(rows.trained_words),
                len(rows),
                len(rows.pairs),
                rows.num_identical,
                rows.num_unspellable,
                visits,
                "" if visits >= 10 else " (10 or more are advised: raise align.words_per_step or align.budget_share)",
            )

    def _batches(self, step: int) -> Iterator[LMBatch]:
        plan, world = self.plan, self.run.world
        micro_batches = MicroBatches(
            plan.first_sample + step * plan.batch_samples,
            plan.num_steps - step,
            plan.batch_samples,
            plan.micro_batch_size,
            world.rank,
            world.size,
        )
        on_gpu = world.device.type != "cpu"
        return iter(make_loader(self.stream, micro_batches, self.run.settings.data.num_workers, on_gpu))

    def _step(self, step: int, batches: Iterator[LMBatch], sums: StepSums) -> None:
        plan, world = self.plan, self.run.world
        # Dropout, where a recipe asks for it, is a function of the step too, so that a resumed run repeats it.
        torch.manual_seed(key_of("dropout", self.run.settings.seed, plan.name, step, world.rank) >> 1)
        set_learning_rate(self.engine, learning_rate(self.settings.optimizer, plan, step * plan.batch_tokens))
        for micro_step in range(plan.accumulation_steps):
            waited = time.perf_counter()
            batch = next(batches)
            words = None
            if self.alignment is not None and micro_step == 0:
                words = self.alignment.batch(step, world.rank, world.size).to(world.device)
            sums.data_wait_s += time.perf_counter() - waited
            loss, log = self.engine(
                batch.input_ids.to(world.device, non_blocking=True),
                batch.targets.to(world.device, non_blocking=True),
                plan.loss_scale,
                words,
                float(plan.accumulation_steps),
            )
            self.engine.backward(loss)
            self.engine.step()
            sums.add(log)
            for name in self._count_names:
                sums.counts[name] += batch.counts[name]
        sums.steps += 1

    def _log(self, step: int, sums: StepSums) -> None:
        plan, totals = self.plan, sums.reduce()
        seconds = sums.seconds
        if not self.run.world.is_main:
            return
        tokens_per_s = sums.steps * plan.batch_tokens / seconds
        norm = self.engine.get_global_grad_norm()
        record: dict[str, Any] = {
            "stage": plan.name,
            "step": step,
            "samples": plan.first_sample + step * plan.batch_samples,
            "tokens": self._tokens(step),
            "loss": totals["lm_loss_sum"][0] / totals["num_targets"][0],
            "learning_rate": learning_rate(self.settings.optimizer, plan, (step - 1) * plan.batch_tokens),
            "gradient_norm": None if norm is None else float(norm),
            "skipped_steps": self.engine.skipped_steps,
            "tokens_per_s": tokens_per_s,
            "mfu": self._mfu(tokens_per_s),
            "step_ms": 1000 * seconds / sums.steps,
            "data_wait_ms": 1000 * sums.data_wait_s / sums.steps,
            "seconds_left": (plan.num_steps - step) * seconds / sums.steps,
        }
        for name in ("alignment_loss", "aligned_cosine", "random_cosine"):
            if name in totals:
                record[name] = [value / sums.steps / plan.world_size for value in totals[name]]
        if totals.get("num_words", [0])[0]:
            words, drawn = totals["num_words"][0], totals["num_drawn"][0]
            switched = {name.partition(".")[2]: n[0] for name, n in totals.items() if name.startswith("switched.")}
            coverage = sum(switched.values()) / drawn if drawn else None
            record["codeswitch_rate"] = sum(switched.values()) / words
            record["codeswitch_rate_by_language"] = {name: number / words for name, number in switched.items()}
            record["codeswitch_coverage"] = coverage
            record["codeswitch_expected_rate"] = coverage and coverage * self.run.settings.codeswitch.ratio
        self.metrics.append(record)
        self._to_monitor(record)
        _LOGGER.info("%s", progress_line(record, plan.num_steps))

    def _to_monitor(self, record: dict[str, Any]) -> None:
        monitor = self.engine.monitor
        if monitor is not None and monitor.enabled:
            numbers = {name: value for name, value in record.items() if isinstance(value, (int, float))}
            monitor.write_events([(f"{record['stage']}/{n}", value, record["samples"]) for n, value in numbers.items()])

    def _evaluate(self, step: int) -> None:
        if not self.run.held_out:
            return
        self.engine.eval()
        found = self.run.perplexities(lambda inputs, targets: self.engine(inputs, targets, 1.0)[1]["lm_loss_sum"])
        self.engine.train()
        if self.run.world.is_main:
            record = {
                "stage": self.plan.name,
                "step": step,
                "tokens": self._tokens(step),
                "perplexity": {language: value.perplexity for language, value in found.items()},
                "bits_per_byte": {language: value.bits_per_byte for language, value in found.items()},
            }
            self.evaluations.append(record)
            shown = "  ".join(f"{language} {value.perplexity:.2f}" for language, value in found.items())
            _LOGGER.info("%s %d: held-out perplexity  %s", self.plan.name, step, shown)

    def _tokens(self, step: int) -> int:
        """LM tokens of the whole run after ``step`` steps of this stage."""
        return (self.plan.first_sample + step * self.plan.batch_samples) * self.plan.sequence_length

    def _due(self, step: int, every_tokens: int) -> bool:
        """Whether a multiple of ``every_tokens`` was passed in this step; always at the end of the stage."""
        if step == self.plan.num_steps:
            return True
        tokens = step * self.plan.batch_tokens
        return every_tokens > 0 and tokens // every_tokens > (tokens - self.plan.batch_tokens) // every_tokens

    def _finish(self, result: Path) -> None:
        weights = full_weights(self.engine, self.module.model, keep=self.run.world.is_main)
        if self.run.world.is_main:
            record = {"tokens": self.plan.end_sample * self.plan.sequence_length, **self.run.describe()}
            save_model(result, self.module.model, weights, self.run.tokenizer, record)
        torch.distributed.barrier()
        self.engine.destroy()

    def _count_flops(self) -> float:
        """Training FLOPs a token: 6 N with the LM head, and 12 L H S for attention (arXiv 2204.02311, appendix B)."""
        model = self.run.settings.model
        length = self.plan.sequence_length
        head = self.run.model_config.vocab_size * model.hidden_size
        inner = num_parameters(self.module.model, embeddings=False)
        return 6 * (inner + head) + 12 * model.num_layers * model.hidden_size * length

    def _mfu(self, tokens_per_s: float) -> float | None:
        """Share of the GPUs' bf16 peak, or None where the peak is not known or stage 1's words are not counted."""
        if self.run.world.device.type != "cuda" or self.alignment is not None:
            return None
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in _BF16_PEAK_FLOPS.items() if key in name), None)
        return tokens_per_s * self._flops_per_token / peak / self.plan.world_size if peak else None
