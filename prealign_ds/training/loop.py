"""The training loop, the same for both stages: read, forward, backward, step, log, evaluate, save."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from transformers import PreTrainedModel

from prealign_ds.alignment.conflict import GradientComparison
from prealign_ds.cli import LocalError
from prealign_ds.config import StageSettings
from prealign_ds.files import atomic_write, claimed, write_json
from prealign_ds.model import num_parameters, training_flops
from prealign_ds.randomness import key_of
from prealign_ds.recipe import check_same_run, dump_settings
from prealign_ds.stream.loader import LMBatch, MicroBatches, make_loader
from prealign_ds.training.checkpoint import save_model
from prealign_ds.training.engine import (
    engine_config,
    full_weights,
    read_ds_config,
    set_learning_rate,
    start_engine,
    take_step,
)
from prealign_ds.training.evaluations import Evaluations
from prealign_ds.training.kernels import Kernels, Place, choose_kernels, compile_adam
from prealign_ds.training.monitor import StageLog, StepSums
from prealign_ds.training.plan import StagePlan, learning_rate, plan_stages
from prealign_ds.training.preemption import Preempted, StopFlag
from prealign_ds.training.progress import progress_bar
from prealign_ds.training.resume import StageCheckpoints, load_checkpoint
from prealign_ds.training.run import Run
from prealign_ds.training.trackers import check_trackers, tracker_sections
from prealign_ds.training.watchdog import Watchdog

_LOGGER = logging.getLogger(__name__)
_OTHERS_LEAVE_SECONDS = 120


def train(run: Run, stop: StopFlag) -> None:
    """Run every stage of the configuration that is not done yet, and leave the final model in ``run_dir/model``.

    Raises:
        ValueError: If the run folder, the data or a checkpoint does not fit, or a guard stops the run.
        Preempted: If a rank was told to stop; everything is saved then.
    """
    plans = plan_stages(run.settings, run.world.size)
    run.world.on_main(lambda: check_same_run(run.settings))
    run.world.on_main(lambda: check_trackers(run.settings.log))
    with ExitStack() as claims:
        run.world.on_main(lambda: claims.enter_context(claimed(run.dir, "run", _OTHERS_LEAVE_SECONDS)))
        _run_stages(run, plans, stop)


def _run_stages(run: Run, plans: Sequence[StagePlan], stop: StopFlag) -> None:
    watchdog = Watchdog(run.world, run.settings.guards.hang_seconds)
    try:
        for plan in plans:
            _run_stage(run, plan, sum(plan.num_tokens for plan in plans), stop, watchdog)
    except RuntimeError as error:
        lost = watchdog.blame()
        if lost is None:
            raise
        raise LocalError(f"{lost}; the other ranks cannot go on ({str(error).splitlines()[0]})") from error
    finally:
        watchdog.close()


def _run_stage(run: Run, plan: StagePlan, total: int, stop: StopFlag, watchdog: Watchdog) -> None:
    result = run.dir / ("align" if plan.name == "align" else "model")
    if result.is_dir():
        _LOGGER.info("%s: already done, %s exists", plan.name, result)
        return
    stop.check()
    share = 100 * plan.num_tokens / total
    _LOGGER.info("%s: %d steps, %s LM tokens (%.1f %%)", plan.name, plan.num_steps, f"{plan.num_tokens:,}", share)
    loop = StageLoop(run, plan, stop, watchdog)
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
        stop: Asked between steps, evaluation batches and the like.
        watchdog: Told where this rank is.

    Raises:
        ValueError: If the newest checkpoint is damaged or belongs to another run.
    """

    def __init__(self, run: Run, plan: StagePlan, stop: StopFlag, watchdog: Watchdog):
        self.run, self.plan, self.stop, self.watchdog = run, plan, stop, watchdog
        self.settings: StageSettings = getattr(run.settings, plan.name)
        self.stream = run.stream(plan.name)
        ds_config = read_ds_config(run.settings.deepspeed)
        self.kernels = self._choose_kernels(ds_config)
        self.module = run.module(plan.name, self.kernels)
        self.alignment = self.module.stage
        self._num_parameters = num_parameters(self.module.model)  # before ZeRO-3 takes them apart
        flops = training_flops(self.module.model, plan.sequence_length)
        config = engine_config(ds_config, plan, self.settings.optimizer, self.kernels)
        config |= tracker_sections(run.settings.log, run.dir, plan.name)
        self.evaluations = Evaluations(run)
        self.checkpoints = StageCheckpoints(run, plan, run.fingerprint(self.stream), ds_config, self.kernels)
        saved = self.checkpoints.saved
        self.step: int = saved["step"] if saved else 0
        self.sample: int = saved["sample"] if saved else plan.first_sample
        self._source = self.checkpoints.source(config, self._poll)
        self._pending: dict[str, Any] | None = saved["evaluation_pending"] if saved else None
        self.sums = StepSums(run.world.device, saved["sums"] if saved else None)
        self._skipped_in_row = 0
        self.engine = start_engine(self.module, config, self.kernels)
        self.log = StageLog(run, plan, self.engine, flops)
        languages = self.run.table.languages if self.stream.switcher else []
        self._count_names = ["num_words", "num_drawn", *(f"switched.{language}" for language in languages)]

    def _choose_kernels(self, ds_config: dict[str, Any]) -> Kernels:
        run, plan = self.run, self.plan
        tokens = plan.micro_batch_size * plan.sequence_length
        place = Place.of(
            *(run.world.device, ds_config, run.model_config, tokens),
            word_batches=bool(plan.words_every),
            two_backwards=self._compares_gradients,
        )
        fp16 = ds_config.get("fp16", {}).get("enabled")
        if self._compares_gradients and (fp16 or place.zero_stage == 3):
            raise ValueError(
                "log.gradient_cosine_every_steps: needs whole weights and gradients that do not vanish without a loss "
                f"scale, and {run.settings.deepspeed} has {'fp16' if fp16 else 'ZeRO stage 3'}; set it to 0, or use "
                "ZeRO 0 to 2 in bf16 or fp32"
            )
        kernels, lines = choose_kernels(run.settings.kernels, place)
        for line in lines:
            _LOGGER.info("%s: %s", plan.name, line)
        if kernels.optimizer == "deepspeed":
            self.watchdog.at("compiling DeepSpeed's Adam")
            compile_adam(run.world, bool(place.offload))
        return kernels

    @property
    def _compares_gradients(self) -> bool:
        return self.plan.words_every > 0 and self.run.settings.log.gradient_cosine_every_steps > 0

    def _poll(self) -> None:
        """Called again and again in long work, by all ranks alike."""
        self.watchdog.at(self.watchdog.place)
        self.stop.check()

    def fit(self, result: Path) -> None:
        """Train from the newest checkpoint, or the start, to the end of the stage; save its weights in ``result``."""
        if self.run.settings.guards.trial_batch:
            self._try_largest_batches()
        if self._source is not None:
            self.watchdog.at(f"loading {self._source}")
            load_checkpoint(self.engine, self._source)
        if self.run.world.is_main:
            self.log.begin(self.step, self._num_parameters)
        try:
            with progress_bar(self.plan, self.sample, self.run.world.is_main) as show:
                for _ in self.steps():
                    show(self.sample, self.log.last_loss)
        except Preempted:
            self._save()
            self.checkpoints.settle()
            _LOGGER.info("%s %d: told to stop; saved, the same command goes on from here", self.plan.name, self.step)
            raise
        self._finish(result)

    def steps(self) -> Iterator[int]:
        """Train to the end of the stage; yields each step's number when all that belongs to it is done."""
        settings = self.run.settings
        if self._pending:
            self._evaluate(**self._pending)
        batches = self._batches()
        while self.sample < self.plan.end_sample:
            self.stop.check()
            self.checkpoints.settle(wait=False)
            before = self.sample
            self._step(batches)
            ended = self.sample == self.plan.end_sample
            if ended or self.step % settings.log.every_steps == 0:
                totals = self.sums.reduce()
                if self.run.world.is_main:
                    self.log.write(self.step, self.sample, self.sums, totals)
                self.sums = StepSums(self.run.world.device)
            due = ended or self._passed(settings.evaluation.every_tokens, before)
            self._evaluate(self.evaluations.names if due else [], self.evaluations.ended_periods(before, self.sample))
            if ended or self._passed(settings.checkpoint.every_tokens, before):
                self._save()
            yield self.step
        self.checkpoints.settle()

    def _save(self) -> None:
        self.watchdog.at(f"saving step {self.step} of {self.plan.name}")
        record = {"sums": self.sums.reduce(), "evaluation_pending": self._pending}
        self.checkpoints.save(self.engine, self.step, self.sample, self._num_parameters, record)

    def _try_largest_batches(self) -> None:
        """A forward that keeps its activations, and an evaluation batch, as large as any that comes."""
        plan, world, words = self.plan, self.run.world, None
        self.watchdog.at("trying the largest batches")
        rows = torch.zeros(plan.micro_batch_size, plan.sequence_length, dtype=torch.int64, device=world.device)
        if self.alignment is not None:
            words = self.alignment.largest_batch(world.rank, world.size).to(world.device)
        try:
            self.engine(rows, rows, plan.loss_scale(plan.batch_samples), words)
            self.engine.eval()
            self.evaluations.try_largest_batch(self._compute)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise LocalError(
                f"{plan.name}: the largest batch does not fit in memory ({str(error).splitlines()[0]}); "
                f"lower {plan.name}.micro_batch_size ({plan.micro_batch_size}), evaluation.batch_size or "
                "align.words_per_step, set model.activation_checkpointing=true, or choose a ds_config of a higher stage"
            ) from error
        finally:
            self.engine.train()
        get_accelerator().empty_cache()

    def _batches(self) -> Iterator[LMBatch]:
        plan, world = self.plan, self.run.world
        micro_batches = MicroBatches(
            self.sample, plan.end_sample, plan.batch_samples, plan.micro_batch_size, world.rank, world.size
        )
        on_gpu = world.device.type != "cpu"
        return make_loader(self.stream, micro_batches, self.run.settings.data.num_workers, on_gpu)

    def _step(self, batches: Iterator[LMBatch]) -> None:
        plan, world, step = self.plan, self.run.world, self.step
        samples = min(plan.batch_samples, plan.end_sample - self.sample)
        # Dropout, where a recipe asks for it, is a function of the step too, so that a resumed run repeats it.
        torch.manual_seed(key_of("dropout", self.run.settings.seed, plan.name, step, world.rank) >> 1)
        set_learning_rate(self.engine, self._learning_rate(self.sample))
        logs, counts = [], Counter[str]()
        number = plan.word_batch(step)
        comparison = None
        every = self.run.settings.log.gradient_cosine_every_steps
        if self._compares_gradients and number is not None and step % every == 0:
            comparison = GradientComparison(self.module.model)
        for micro_step in range(plan.accumulation_steps):
            self.watchdog.at(f"reading the data of {plan.name} step {step + 1}")
            waited = time.perf_counter()
            batch = next(batches)
            words = None
            if self.alignment is not None and number is not None and micro_step == 0:
                words = self.alignment.batch(number, world.rank, world.size).to(world.device)
            self.sums.data_wait_s += time.perf_counter() - waited
            self.watchdog.at(f"computing {plan.name} step {step + 1}")
            loss, log = self.engine(
                batch.input_ids.to(world.device, non_blocking=True),
                batch.targets.to(world.device, non_blocking=True),
                plan.loss_scale(samples),
                words,
                float(plan.accumulation_steps),
                comparison,
            )
            self.engine.backward(loss)
            if comparison is not None and micro_step == plan.accumulation_steps - 1:
                log |= comparison.products()
            applied = take_step(self.engine)
            logs.append(log)
            counts.update({name: batch.counts[name] for name in self._count_names})
        self.step += 1
        self.sample += samples
        self.sums.steps += 1
        self.sums.samples += samples
        if applied:
            self._skipped_in_row = 0
            counts["applied_steps"] = int(world.is_main)
            counts["aligned_steps"] = int(world.is_main and number is not None)
            self.sums.add(logs, counts)
        else:
            self._report_skipped(samples)

    def _learning_rate(self, sample: int) -> float:
        tokens = (sample - self.plan.first_sample) * self.plan.sequence_length
        return learning_rate(self.settings.optimizer, self.plan, tokens)

    def _report_skipped(self, samples: int) -> None:
        """Say that the last step changed nothing; stop the run where that goes on."""
        self._skipped_in_row += 1
        where, limit = f"{self.plan.name} {self.step}", self.run.settings.guards.skipped_steps
        first, last = self.sample - samples, self.sample - 1
        if self.run.world.is_main:
            _LOGGER.warning(
                "%s: step skipped, its gradient is not finite (%d in a row; samples %d to %d)",
                *(where, self._skipped_in_row, first, last),
            )
        if self._skipped_in_row < limit:
            return
        self.checkpoints.settle()
        path = self.run.dir / "skipped.json"
        if self.run.world.is_main:
            write_json(path, {"stage": self.plan.name, "step": self.step, "in_row": limit, "samples": [first, last]})
        raise ValueError(
            f"{where}: {limit} steps in a row had a gradient that is not finite; the samples of the last one are in "
            f"{path}. Lower {self.plan.name}.optimizer.learning_rate, or look at these samples (stream[k])"
        )

    def _evaluate(self, names: list[str], periods: list[int]) -> None:
        if not names and not periods:
            return
        self._pending = {"names": names, "periods": periods}
        self.watchdog.at(f"evaluating after step {self.step} of {self.plan.name}")
        self.engine.eval()
        found = self.evaluations.measure(self._compute, names, periods)
        self.engine.train()
        if self.run.world.is_main:
            self.log.write_evaluation(self.step, self._tokens(), found)
        self._pending = None

    def _compute(self, task: Callable[[PreTrainedModel], Any]) -> Any:
        """How an evaluation reaches the model."""
        self._poll()
        return self.engine(task=task)

    def _tokens(self) -> int:
        """LM tokens of the whole run until now."""
        return self.sample * self.plan.sequence_length

    def _passed(self, every_tokens: int, before: int) -> bool:
        """Whether the step that began at sample ``before`` passed a multiple of ``every_tokens`` of the stage."""
        if not every_tokens:
            return False
        first, length = self.plan.first_sample, self.plan.sequence_length
        return (self.sample - first) * length // every_tokens > (before - first) * length // every_tokens

    def _finish(self, result: Path) -> None:
        self.watchdog.at(f"writing {result}")
        weights = full_weights(self.engine, self.module.model, keep=self.run.world.is_main)
        if self.run.world.is_main:
            record = {"tokens": self.plan.end_sample * self.plan.sequence_length, **self.run.describe()}
            save_model(result, self.module.model, weights, self.run.tokenizer, record)
        torch.distributed.barrier()
        self.engine.destroy()
