"""The training loop, the same for both stages: read, forward, backward, step, log, evaluate, save."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from prealign_ds.cli import LocalError
from prealign_ds.config import StageSettings
from prealign_ds.files import atomic_write, digest_of, read_json, write_json
from prealign_ds.model import num_parameters, training_flops
from prealign_ds.randomness import key_of
from prealign_ds.recipe import check_same_run, dump_settings
from prealign_ds.stream.loader import LMBatch, MicroBatches, make_loader
from prealign_ds.training.checkpoint import Checkpoints, save_model
from prealign_ds.training.engine import (
    checkpoint_bytes,
    engine_config,
    full_weights,
    set_learning_rate,
    start_engine,
    take_step,
)
from prealign_ds.training.monitor import StageLog, StepSums
from prealign_ds.training.plan import StagePlan, learning_rate, plan_stages
from prealign_ds.training.preemption import Preempted, StopFlag
from prealign_ds.training.run import Run
from prealign_ds.training.watchdog import Watchdog

_LOGGER = logging.getLogger(__name__)


def train(run: Run, stop: StopFlag) -> None:
    """Run every stage of the configuration that is not done yet, and leave the final model in ``run_dir/model``.

    Raises:
        ValueError: If the run folder, the data or a checkpoint does not fit, or a guard stops the run.
        Preempted: If a rank was told to stop; everything is saved then.
    """
    plans = plan_stages(run.settings, run.world.size)
    run.world.on_main(lambda: check_same_run(run.settings))
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
        self.module = run.module(plan.name)
        self.alignment = self.module.stage
        self._num_parameters = num_parameters(self.module.model)  # before ZeRO-3 takes them apart
        flops = training_flops(self.module.model, plan.sequence_length)
        config = engine_config(run.settings.deepspeed, plan, self.settings.optimizer)
        if run.settings.log.tensorboard:
            events = str(run.dir / "tensorboard")
            config["tensorboard"] = {"enabled": True, "output_path": events, "job_name": plan.name}
        saving = run.settings.checkpoint
        folder = run.dir / "checkpoints" / plan.name
        self.checkpoints = Checkpoints(folder, run.world, saving.keep, saving.keep_every_tokens)
        self._identity = {
            "stage": plan.name,
            "tokenizer_sha256": run.tokenizer_digest,
            "vocabulary": run.vocabulary,
            "model": run.settings.model.model_dump(mode="json", exclude={"activation_checkpointing"}),
            "samples": [plan.first_sample, plan.end_sample],
            "fingerprint": run.fingerprint(self.stream),
        }
        self._layout = {
            "world_size": plan.world_size,
            "zero_stage": config.get("zero_optimization", {}).get("stage", 0),
            "deepspeed": digest_of(read_json(run.settings.deepspeed)),
        }
        self.step, self.sample = 0, plan.first_sample
        self._source: Path | None = None
        saved = self.checkpoints.newest()
        if saved is not None:
            self._check_fits(saved)
            self.step, self.sample = saved["step"], saved["sample"]
            self._source = self._loadable(saved, config)
        self._evaluation_pending = bool(saved and saved["evaluation_pending"])
        self.sums = StepSums(run.world.device, saved["sums"] if saved else None)
        self._skipped_in_row = 0
        self.engine = start_engine(self.module, config)
        self.log = StageLog(run, plan, self.engine, flops)
        languages = self.run.table.languages if self.stream.switcher else []
        self._count_names = ["num_words", "num_drawn", *(f"switched.{language}" for language in languages)]

    def _check_fits(self, saved: dict[str, Any]) -> None:
        path = self.checkpoints.path(saved["step"])
        for key, value in self._identity.items():
            if saved.get(key) == value:
                continue
            if key != "fingerprint":
                raise ValueError(
                    f"{path}: saved with {key} {saved.get(key)!r}, this run has {value!r}: a checkpoint of another "
                    "run; move it away, or choose another run_dir"
                )
            if not self.run.settings.checkpoint.accept_other_data:
                raise ValueError(
                    f"{path}: the training data, the table or the switching is not what this checkpoint was trained "
                    "on; put it back, or read the new data from the next sample on: checkpoint.accept_other_data=true"
                )

    def _loadable(self, saved: dict[str, Any], config: dict[str, Any]) -> Path:
        """The checkpoint in a form that this number of ranks and this ds_config can load."""
        path = self.checkpoints.path(saved["step"])
        before, now = saved["layout"], self._layout
        if before == now or before["zero_stage"] == now["zero_stage"] == 0:
            return path
        if 0 in (before["zero_stage"], now["zero_stage"]):
            raise ValueError(
                f"{path}: saved under ZeRO stage {before['zero_stage']}, {self.run.settings.deepspeed} has "
                f"{now['zero_stage']}; stages 1, 2 and 3 can be exchanged, 0 only resumes 0: choose another ds_config"
            )
        _LOGGER.info(
            "%s: converting %s from %d rank(s) under ZeRO %d to %d under ZeRO %d",
            *(self.plan.name, path, before["world_size"], before["zero_stage"], now["world_size"], now["zero_stage"]),
        )
        config["checkpoint"] = {"load_universal": True}
        return self.checkpoints.convert(saved["step"], self._poll)

    def _poll(self) -> None:
        """Called again and again in long work, by all ranks alike."""
        self.watchdog.at(self.watchdog.place)
        self.stop.check()

    def fit(self, result: Path) -> None:
        """Train from the newest checkpoint, or the start, to the end of the stage; save its weights in ``result``."""
        if self.run.settings.guards.trial_batch:
            self._try_largest_batches()
        self._load()
        if self.run.world.is_main:
            self.log.begin(self.step, self._num_parameters)
        try:
            self._train()
        except Preempted:
            self._save()
            self.checkpoints.settle()
            _LOGGER.info("%s %d: told to stop; saved, the same command goes on from here", self.plan.name, self.step)
            raise
        self._finish(result)

    def _train(self) -> None:
        settings = self.run.settings
        if self._evaluation_pending:
            self._evaluate()
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
            if ended or self._passed(settings.evaluation.every_tokens, before):
                self._evaluate()
            if ended or self._passed(settings.checkpoint.every_tokens, before):
                self._save()
        self.checkpoints.settle()

    def _load(self) -> None:
        if self._source is None:
            return
        self.watchdog.at(f"loading {self._source}")
        decays = [group["weight_decay"] for group in self.engine.optimizer.param_groups]
        try:
            self.engine.load_checkpoint(str(self._source.parent), tag=self._source.name)
        except (RuntimeError, OSError, EOFError, KeyError) as error:
            raise LocalError(
                f"{self._source}: DeepSpeed cannot load it ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "if it is damaged, delete that folder to go on from the checkpoint before it"
            ) from error
        # From a universal checkpoint, ZeRO-3 gives all groups the numbers of the first, and one step counter to all.
        for group, decay in zip(self.engine.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in self.engine.optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    def _save(self) -> None:
        self.watchdog.at(f"saving step {self.step} of {self.plan.name}")
        record = {
            **self._identity,
            "sample": self.sample,
            "layout": self._layout,
            "sums": self.sums.reduce(),
            "evaluation_pending": self._evaluation_pending,
            "settings": self.run.settings.model_dump(mode="json"),
        }
        num_bytes = checkpoint_bytes(self.engine, self._num_parameters)
        self.checkpoints.save(self.engine, self.step, self._tokens(), num_bytes, record)

    def _try_largest_batches(self) -> None:
        """A forward that keeps its activations, and an evaluation batch, as large as any that comes."""
        plan, world, words = self.plan, self.run.world, None
        self.watchdog.at("trying the largest batches")
        rows = torch.zeros(plan.micro_batch_size, plan.sequence_length, dtype=torch.int64, device=world.device)
        held_out = rows.new_zeros(self.run.settings.evaluation.batch_size, plan.sequence_length)
        if self.alignment is not None:
            words = self.alignment.largest_batch(world.rank, world.size).to(world.device)
        try:
            self.engine(rows, rows, plan.loss_scale(plan.batch_samples), words)
            self.engine.eval()
            with torch.no_grad():
                self.engine(held_out, held_out, 1.0)
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
        for micro_step in range(plan.accumulation_steps):
            self.watchdog.at(f"reading the data of {plan.name} step {step + 1}")
            waited = time.perf_counter()
            batch = next(batches)
            words = None
            if self.alignment is not None and micro_step == 0:
                words = self.alignment.batch(step, world.rank, world.size).to(world.device)
            self.sums.data_wait_s += time.perf_counter() - waited
            self.watchdog.at(f"computing {plan.name} step {step + 1}")
            loss, log = self.engine(
                batch.input_ids.to(world.device, non_blocking=True),
                batch.targets.to(world.device, non_blocking=True),
                plan.loss_scale(samples),
                words,
                float(plan.accumulation_steps),
            )
            self.engine.backward(loss)
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

    def _evaluate(self) -> None:
        if not self.run.held_out:
            return
        self._evaluation_pending = True
        self.watchdog.at(f"evaluating after step {self.step} of {self.plan.name}")
        self.engine.eval()

        def loss_sum(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            self._poll()
            return self.engine(inputs, targets, 1.0)[1]["lm_loss_sum"]

        found = self.run.perplexities(loss_sum)
        self.engine.train()
        if self.run.world.is_main:
            self.log.write_evaluation(self.step, self._tokens(), found)
        self._evaluation_pending = False

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
