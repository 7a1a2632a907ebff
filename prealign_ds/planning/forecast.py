"""What a run will cost: FLOPs, time, traffic between GPUs, disk.

Time is FLOPs over a share of the GPUs' peak that others have published (``training.gpus``), and traffic over nominal
bandwidths: a range to plan with, not a promise. A run's own ``metrics.jsonl`` has both as measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from prealign_ds.config import RunSettings
from prealign_ds.model import num_parameters, training_flops
from prealign_ds.planning.footprint import Data, Machine, Words, empty_model
from prealign_ds.planning.zero import Engine, gathered_elements, read_engine
from prealign_ds.training.engine import checkpoint_bytes
from prealign_ds.training.plan import StagePlan, plan_stages


@dataclass(frozen=True)
class ModelCosts:
    """Costs of the model alone.

    Attributes:
        num_parameters: All, tied ones once.
        num_block_parameters: Without look-up tables and LM head.
        sizes: Elements of each parameter.
        flops_per_token: Of training, without recomputation (``model.training_flops``).
        recomputed_per_token: FLOPs that activation checkpointing adds: the blocks' forward once more.
        num_layers: Blocks L.
        hidden_size: Width H.
    """

    num_parameters: int
    num_block_parameters: int
    sizes: tuple[int, ...]
    flops_per_token: float
    recomputed_per_token: float
    num_layers: int
    hidden_size: int


def model_costs(settings: RunSettings, vocabulary: int) -> ModelCosts:
    """Count the model that these settings build."""
    shape, length = settings.model, settings.data.sequence_length
    model = empty_model(shape, length, vocabulary)
    blocks = num_parameters(model, embeddings=False)
    recomputed = 2 * blocks + 4 * shape.num_layers * shape.hidden_size * length
    return ModelCosts(
        num_parameters=num_parameters(model),
        num_block_parameters=blocks,
        sizes=tuple(parameter.numel() for parameter in model.parameters()),
        flops_per_token=training_flops(model, length),
        recomputed_per_token=recomputed if shape.activation_checkpointing else 0,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
    )


@dataclass(frozen=True)
class StageForecast:
    """One stage; ranges are (low, high).

    Attributes:
        plan: The stage in numbers.
        lm_flops: Of an optimizer step on all GPUs, without recomputation.
        word_flops: Of word batches, on average over the steps.
        recomputed_flops: What activation checkpointing adds.
        traffic: Bytes that a GPU sends in a step, by kind.
        traffic_seconds: Their time where nothing hides it.
        step_seconds: Seconds of a step: compute at the high and low share of the peak, traffic hidden and not.
        visits: How often the stage sees each word of W; None without word batches and where the table is not there.
    """

    plan: StagePlan
    lm_flops: float
    word_flops: float
    recomputed_flops: float
    traffic: dict[str, float]
    traffic_seconds: float
    step_seconds: tuple[float, float]
    visits: float | None

    @property
    def tokens_per_s(self) -> tuple[float, float]:
        """LM tokens a second on all GPUs."""
        return self.plan.batch_tokens / self.step_seconds[1], self.plan.batch_tokens / self.step_seconds[0]

    @property
    def hours(self) -> tuple[float, float]:
        """Hours of the stage."""
        return self.plan.num_steps * self.step_seconds[0] / 3600, self.plan.num_steps * self.step_seconds[1] / 3600

    @property
    def word_share(self) -> float:
        """The word batches' share of the stage's FLOPs."""
        return self.word_flops / (self.lm_flops + self.word_flops)


def forecast_stages(
    settings: RunSettings, machine: Machine, data: Data, costs: ModelCosts, network: float | None = None
) -> list[StageForecast]:
    """Every stage of a run.

    Args:
        settings: The configuration.
        machine: Where it runs.
        data: From ``footprint.look_at_data``.
        costs: From :func:`model_costs`.
        network: Bytes a second of one GPU's share of its node's network; None takes the kind's.
    """
    engine = read_engine(settings.deepspeed)
    bandwidth = min(machine.gpu.link, network or machine.gpu.network) if machine.nodes > 1 else machine.gpu.link
    return [
        _forecast(settings, plan, machine, data.words, costs, engine, bandwidth)
        for plan in plan_stages(settings, machine.world_size)
    ]


def _forecast(
    settings: RunSettings,
    plan: StagePlan,
    machine: Machine,
    words: Words | None,
    costs: ModelCosts,
    engine: Engine,
    bandwidth: float,
) -> StageForecast:
    aligns = plan.words_every > 0 and words is not None
    layers = costs.num_layers + 2 if settings.align.layers == "all" else len(settings.align.layers)
    lm_flops = costs.flops_per_token * plan.batch_tokens
    recomputed = costs.recomputed_per_token * plan.batch_tokens
    word_flops, visits = 0.0, None
    if aligns and words is not None:
        # Three products of all rows with all rows: logits, once more for the gradient, and the gradient itself.
        word_flops = 6 * costs.num_block_parameters * words.step_tokens + 6 * layers * costs.hidden_size * words.rows**2
        word_flops /= plan.words_every
        if settings.model.activation_checkpointing:
            recomputed += 2 * costs.num_block_parameters * words.step_tokens / plan.words_every
        visits = plan.num_word_batches * settings.align.words_per_step / words.num_words if words.num_words else None
    traffic = step_traffic(engine, costs.sizes, machine.world_size, plan.accumulation_steps)
    if aligns and words is not None:
        traffic["word rows"] = (
            _others(machine.world_size) * 4 * layers * words.rows * costs.hidden_size / plan.words_every
        )
    seconds = sum(traffic.values()) / bandwidth
    slowest, fastest = (
        (lm_flops + word_flops + recomputed) / (share * machine.gpu.peak_flops * machine.world_size)
        for share in machine.gpu.mfu
    )
    return StageForecast(
        plan, lm_flops, word_flops, recomputed, traffic, seconds, (max(fastest, seconds), slowest + seconds), visits
    )


def _others(world_size: int) -> float:
    return (world_size - 1) / world_size


def step_traffic(engine: Engine, sizes: tuple[int, ...], world_size: int, accumulation: int) -> dict[str, float]:
    """Bytes that each GPU sends for the model in one optimizer step, collectives as rings.

    Read in DeepSpeed 0.19.8: stages 0 and 1 all-reduce once a step. Stage 2 reduces in every micro-step, and with
    ``use_multi_rank_bucket_allreduce`` (its default) by an all-reduce. Stage 3 gathers the weights in every forward,
    again in the backward what it has not kept, and reduce-scatters in every micro-step.

    Args:
        engine: From ``zero.read_engine``.
        sizes: Elements of each parameter.
        world_size: Ranks.
        accumulation: Micro-steps in an optimizer step.
    """
    number, others = sum(sizes), _others(world_size)
    once = others * engine.reduce_bytes * number
    weights = others * engine.weight_bytes * number
    if engine.stage == 0:
        return {"gradients": 2 * once}
    if engine.stage == 1:
        return {"gradients": 2 * once, "weights": weights}
    if engine.stage == 2:
        times = 2 if engine.zero.use_multi_rank_bucket_allreduce or not engine.zero.reduce_scatter else 1
        return {"gradients": times * once * accumulation, "weights": weights}
    again = max(0, number - gathered_elements(engine, list(sizes))) / number
    return {"gradients": once * accumulation, "weights": (1 + again) * weights * accumulation}


@dataclass(frozen=True)
class DiskForecast:
    """Bytes on disk.

    Attributes:
        checkpoint: One checkpoint.
        most: Checkpoints that lie there at once: those kept, the milestones of the longest stage, and one being saved.
        model: The final model, fp32; stage 1's result is as large.
    """

    checkpoint: int
    most: int
    model: int


def forecast_disk(settings: RunSettings, machine: Machine, costs: ModelCosts) -> DiskForecast:
    """What the run folder will hold: checkpoints have the weights, Adam's moments, and under ZeRO fp32 weights too."""
    engine, saving = read_engine(settings.deepspeed), settings.checkpoint
    longest = max(plan.num_tokens for plan in plan_stages(settings, machine.world_size))
    milestones = longest // saving.keep_every_tokens if saving.keep_every_tokens else 0
    checkpoint = checkpoint_bytes(costs.num_parameters, engine.weight_bytes, engine.stage)
    return DiskForecast(checkpoint, saving.keep + milestones + 1, 4 * costs.num_parameters)
