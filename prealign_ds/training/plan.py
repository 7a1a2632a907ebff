"""Batch and schedule arithmetic: what each stage reads, in whole batches, and the learning rate at each token."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prealign_ds.config import OptimizerSettings, RunSettings, StageSettings

_DEFAULT_WARMUP = {"align": 0.05, "pretrain": 0.01}


@dataclass(frozen=True)
class StagePlan:
    """One stage in numbers; a sample is ``sequence_length`` tokens.

    Which samples a stage reads does not depend on the batch size: where they are no whole batches, the last is smaller.

    Attributes:
        name: ``align`` or ``pretrain``.
        first_sample: Index of the first sample of the stream that the stage reads.
        end_sample: Index after the last one.
        batch_samples: Samples in a global batch.
        micro_batch_size: Samples that one rank handles at once.
        accumulation_steps: Micro-batches of one rank in an optimizer step.
        world_size: Ranks.
        sequence_length: Tokens S in a sample.
        words_every: Every so many steps encode a word batch; 0 for none.
        first_word_batch: Number of the first one.
    """

    name: str
    first_sample: int
    end_sample: int
    batch_samples: int
    micro_batch_size: int
    accumulation_steps: int
    world_size: int
    sequence_length: int
    words_every: int = 0
    first_word_batch: int = 0

    @property
    def batch_tokens(self) -> int:
        """LM tokens in a global batch."""
        return self.batch_samples * self.sequence_length

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a run that keeps its batch size."""
        return self.steps_from(self.first_sample)

    @property
    def num_tokens(self) -> int:
        """LM tokens of the stage."""
        return (self.end_sample - self.first_sample) * self.sequence_length

    def steps_from(self, sample: int) -> int:
        """Optimizer steps that are left when ``sample`` is the next one."""
        return math.ceil((self.end_sample - sample) / self.batch_samples)

    @property
    def num_word_batches(self) -> int:
        """Steps that encode a word batch."""
        return math.ceil(self.num_steps / self.words_every) if self.words_every else 0

    def word_batch(self, step: int) -> int | None:
        """Number of the word batch that step ``step`` encodes, or None."""
        if not self.words_every or step % self.words_every:
            return None
        return self.first_word_batch + step // self.words_every

    def loss_scale(self, samples: int) -> float:
        """What a rank multiplies a micro-batch's summed loss by, in a global batch of ``samples`` samples.

        The engine averages over ranks and accumulation steps; this undoes it and divides by the constant number of
        tokens in the global batch, so that the gradient is the same for every world size.
        """
        return self.world_size * self.accumulation_steps / (samples * self.sequence_length)


def plan_stages(settings: RunSettings, world_size: int) -> list[StagePlan]:
    """The stages of a run, one after the other on one stream of samples.

    Stage 1 takes ``align.budget_share`` of ``lm_tokens`` and stage 2 the rest: runs with and without it, and with any
    batch size, read the same number of samples.

    Raises:
        ValueError: If a batch does not divide into samples, ranks and micro-batches, or the budget is below a batch.
    """
    length = settings.data.sequence_length
    batches = {
        "align": _batch(settings.align, "align", settings.align.batch_tokens or settings.pretrain.batch_tokens, length),
        "pretrain": _batch(settings.pretrain, "pretrain", settings.pretrain.batch_tokens, length),
    }
    budget = settings.lm_tokens // length
    share = round(settings.align.budget_share * budget) if "align" in settings.stages else 0
    spans = {"align": (0, share), "pretrain": (share, budget)}
    plans: list[StagePlan] = []
    for name in settings.stages:
        stage: StageSettings = getattr(settings, name)
        batch, (first, end) = batches[name], spans[name]
        if end - first < batch:
            raise ValueError(
                f"lm_tokens: {settings.lm_tokens} are too few for the stages {settings.stages} with a batch of "
                f"{batch * length} tokens; raise lm_tokens or lower {name}.batch_tokens"
            )
        accumulation = _accumulation(name, batch, stage.micro_batch_size, world_size, length)
        words_every = 1 if name == "align" else settings.pretrain.align_every_steps
        first_word_batch = sum(plan.num_word_batches for plan in plans)
        plans.append(
            StagePlan(
                *(name, first, end, batch, stage.micro_batch_size, accumulation, world_size, length),
                *(words_every, first_word_batch),
            )
        )
    return plans


def _batch(stage: StageSettings, name: str, tokens: int, length: int) -> int:
    if tokens < length or tokens % length:
        low = tokens // length * length
        near = " or ".join(str(value) for value in (low, low + length) if value)
        raise ValueError(
            f"{name}.batch_tokens: {tokens} is not a multiple of data.sequence_length {length}; the nearest are {near}"
        )
    return tokens // length


def _accumulation(name: str, batch: int, micro: int, world: int, length: int) -> int:
    unit = micro * world
    if batch % unit == 0:
        return batch // unit
    low = batch // unit * unit * length
    near = " or ".join(str(value) for value in (low, low + unit * length) if value)
    sizes = [size for size in range(1, batch // world + 1) if batch % (size * world) == 0]
    hint = f", or micro_batch_size is one of {sizes[-6:]}" if sizes else ""
    raise ValueError(
        f"{name}.batch_tokens: {batch * length} tokens are {batch} samples, which {world} rank(s) cannot share in "
        f"micro-batches of {micro}; the nearest batch_tokens are {near}{hint}"
    )


def learning_rate(settings: OptimizerSettings, plan: StagePlan, tokens: int) -> float:
    """Learning rate of the step that starts after ``tokens`` LM tokens of the stage.

    Linear warm-up to the peak, then cosine or linear decay to the floor, in absolute tokens: a longer run with the same
    ``warmup_tokens`` and ``decay_tokens`` has the same learning rates.
    """
    warmup = settings.warmup_tokens
    if warmup is None:
        warmup = round(_DEFAULT_WARMUP[plan.name] * plan.num_tokens)
    end = settings.decay_tokens or plan.num_tokens
    peak, floor = settings.learning_rate, settings.final_learning_rate
    if tokens < warmup:
        return peak * (tokens + plan.batch_tokens) / (warmup + plan.batch_tokens)
    progress = min(1.0, (tokens - warmup) / max(1, end - warmup))
    if settings.schedule == "constant":
        return peak
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1 - progress
    return floor + (peak - floor) * shape
