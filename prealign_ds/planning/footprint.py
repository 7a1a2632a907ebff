"""Whether a run fits: memory of every part on each GPU and its host, known before anything is queued.

Model states follow from what DeepSpeed does (``planning.zero``); everything else from the step itself on tensors
without data (``planning.activations``). What only a GPU can tell stands in the constants below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prealign_ds.alignment.loss import BLOCK_ELEMENTS
from prealign_ds.alignment.stage import AlignmentStage
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import ModelSettings, RunSettings
from prealign_ds.corpus.tokenizer import load_tokenizer
from prealign_ds.model import model_config, vocabulary_size
from prealign_ds.planning.activations import MicroStep, WordShape, micro_step_bytes
from prealign_ds.planning.zero import Engine, ModelStates, model_states, read_engine
from prealign_ds.training.gpus import Gpu
from prealign_ds.training.kernels import COMPILED_LOGITS_SHARE
from prealign_ds.training.plan import StagePlan, plan_stages

GIB = 2**30

CONTEXT_BYTES = round(1.2 * GIB)
"""Of a GPU before the first tensor: CUDA context, cuBLAS workspaces, NCCL's buffers."""

FRAGMENTATION = 0.08
"""What PyTorch's allocator holds beyond what is asked of it, as a share of that."""

ASSUMED_VOCABULARY = 64_000
_ASSUMED_GROUPS = ((0.5, 2), (0.35, 3), (0.15, 8))


@dataclass(frozen=True)
class Machine:
    """Nodes of GPUs."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int

    @property
    def world_size(self) -> int:
        """Ranks, one a GPU."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Words:
    """Word batches of stage 1.

    Attributes:
        groups: (rows, tokens of the longest) of a whole step's batch of the longest words, group by group.
        step_tokens: Tokens of a step's batch, padding included.
        num_words: Words of W; None where the table is not there to be asked.
    """

    groups: tuple[tuple[int, int], ...]
    step_tokens: int
    num_words: int | None = None

    @property
    def rows(self) -> int:
        """Rows of a step's batch."""
        return sum(rows for rows, _ in self.groups)


@dataclass(frozen=True)
class Data:
    """What a run's data says about its size.

    Attributes:
        vocabulary: Ids in use.
        words: Word batches; None without stage 1.
        assumptions: What was assumed where the data is not there.
    """

    vocabulary: int
    words: Words | None
    assumptions: tuple[str, ...]


def look_at_data(settings: RunSettings, vocab_size: int | None = None) -> Data:
    """The vocabulary and the word batches: from tokenizer and table where they are, assumed where they are not.

    Args:
        settings: The configuration.
        vocab_size: Tokens of the tokenizer, if it does not exist yet.

    Raises:
        ValueError: If tokenizer or table are damaged.
    """
    folder, assumptions = settings.data.tokenizer, []
    tokenizer = load_tokenizer(folder) if folder.is_dir() and vocab_size is None else None
    if tokenizer is not None:
        vocabulary = vocabulary_size(tokenizer, settings.has_clone)
    else:
        vocabulary = (vocab_size or ASSUMED_VOCABULARY) * (2 if settings.has_clone else 1)
        source = "--vocab-size" if vocab_size else f"{folder} does not exist yet"
        assumptions.append(f"a tokenizer of {vocab_size or ASSUMED_VOCABULARY:,} tokens ({source})")
    words = None
    if "align" in settings.stages or settings.keeps_aligning:
        assert settings.table is not None, "the configuration is checked to have one"
        if tokenizer is not None and settings.table.path.is_file():
            words = _words_of_table(settings, tokenizer)
        else:
            words = _assumed_words(settings)
            assumptions.append(
                f"{words.rows:,} rows in a word batch, of {', '.join(f'{n:,} x {t}' for n, t in words.groups)} tokens "
                f"({settings.table.path} or the tokenizer does not exist yet)"
            )
    return Data(vocabulary, words, tuple(assumptions))


def _words_of_table(settings: RunSettings, tokenizer: PreTrainedTokenizerFast) -> Words:
    assert settings.table is not None
    table = AlignmentTable.load(settings.table.path).top(settings.table.top_share)
    table = table.hold_out(settings.table.held_out_share, settings.seed)
    stage = AlignmentStage(table, tokenizer, settings.align, settings.seed)
    largest, usual = (
        tuple((end - first, length) for first, end, length in batch.groups)
        for batch in (stage.largest_batch(), stage.batch(0))
    )
    return Words(largest, sum(rows * length for rows, length in usual), len(stage.rows.trained_words))


def _assumed_words(settings: RunSettings) -> Words:
    languages = {corpus.language for corpus in settings.data.corpora} - {settings.data.source_language}
    rows = settings.align.words_per_step * (1 + max(1, len(languages)) * settings.align.translations_per_language)
    groups = tuple((round(share * rows), length) for share, length in _ASSUMED_GROUPS)
    return Words(groups, sum(rows * length for rows, length in groups))


def transformers_config(settings: ModelSettings, sequence_length: int, vocabulary: int) -> Any:
    """The transformers configuration, which only asks a tokenizer for its end-of-text token."""
    stand_in = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"</s>": 0})), eos_token="</s>")
    return model_config(settings, sequence_length, vocabulary, stand_in)


def empty_model(settings: ModelSettings, sequence_length: int, vocabulary: int) -> PreTrainedModel:
    """The model without memory, to be counted."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(settings, sequence_length, vocabulary))
    return cast(PreTrainedModel, model)


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one GPU in one stage.

    Attributes:
        plan: The stage in numbers.
        states: What DeepSpeed keeps.
        step: Activations, logits, alignment loss and buckets when a micro-step holds the most.
        evaluation: An evaluation batch's activations and logits.
        lm_loss: Implementation of the LM loss.
    """

    plan: StagePlan
    states: ModelStates
    step: dict[str, int]
    evaluation: int
    lm_loss: str

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of every part when a micro-step holds the most."""
        states = self.states
        kept = {"weights": states.weights, "gradients": states.gradients, "optimizer": states.optimizer}
        step = {part: self.step[part] for part in ("activations", "logits", "alignment")}
        return kept | step | {"buffers": states.buffers + self.step["buckets"]}

    @property
    def peak(self) -> int:
        """Bytes of all tensors when they are most: in a micro-step, after the backward, or in an evaluation."""
        kept = self.states.weights + self.states.gradients + self.states.optimizer
        return max(sum(self.parts.values()), kept + self.states.after_backward, kept + self.evaluation)

    @property
    def needed(self) -> int:
        """Bytes that the GPU must have: tensors, the allocator's loss, the context."""
        return round(self.peak * (1 + FRAGMENTATION)) + CONTEXT_BYTES


def stage_memories(settings: RunSettings, machine: Machine, data: Data) -> list[StageMemory]:
    """Memory of every stage of a run.

    Raises:
        ValueError: If a batch cannot be shared by these ranks, or there is no such ds_config.
    """
    engine = read_engine(settings.deepspeed)
    sizes = _parameter_sizes(settings.model.model_dump_json(), settings.data.sequence_length, data.vocabulary)
    states = model_states(engine, list(sizes), machine.world_size)
    plans = plan_stages(settings, machine.world_size)
    return [_stage_memory(settings, machine.gpu, plan, engine, states, data) for plan in plans]


def _stage_memory(
    settings: RunSettings, gpu: Gpu, plan: StagePlan, engine: Engine, states: ModelStates, data: Data
) -> StageMemory:
    model = settings.model.model_dump_json()
    lm_loss = _lm_loss(settings, gpu, plan, data.vocabulary)
    step = MicroStep(
        micro_batch_size=plan.micro_batch_size,
        sequence_length=plan.sequence_length,
        vocabulary=data.vocabulary,
        weight_bytes=engine.weight_bytes,
        autocast=engine.autocast,
        checkpointing=settings.model.activation_checkpointing,
        lm_loss=lm_loss,
        attention=settings.kernels.attention,
        activation="plain" if settings.kernels.activation == "plain" else "fused",
        keeps_gradients=engine.keeps_gradients,
        bucket_bytes=states.buckets,
        words=_word_shape(settings, data.words, plan.world_size) if plan.words_every else None,
    )
    held_out = replace(step, micro_batch_size=settings.evaluation.batch_size, training=False, words=None)
    evaluation = sum(_step_bytes(model, held_out).values()) if settings.data.held_out else 0
    return StageMemory(plan, states, _step_bytes(model, step), evaluation, lm_loss)


def _lm_loss(settings: RunSettings, gpu: Gpu, plan: StagePlan, vocabulary: int) -> str:
    """What ``training.kernels`` chooses on such a GPU."""
    if settings.kernels.lm_loss != "auto":
        return settings.kernels.lm_loss
    logits = 4 * plan.micro_batch_size * plan.sequence_length * vocabulary
    if logits <= COMPILED_LOGITS_SHARE * gpu.memory_gib * GIB:
        return "compiled"
    return "chunked" if hasattr(functional, "linear_cross_entropy") else "plain"


def _word_shape(settings: RunSettings, words: Words | None, world_size: int) -> WordShape:
    """The rows of one rank, and the working memory of ``alignment.loss`` for them."""
    assert words is not None
    groups = tuple((-(-rows // world_size), length) for rows, length in words.groups)
    own, rows, width = sum(rows for rows, _ in groups), words.rows, settings.model.hidden_size
    together = max(1, BLOCK_ELEMENTS // (4 * rows * max(own, width)))  # layers that are worked at together
    units, columns = own * width, (rows * width if world_size > 1 else 0)
    # Unit rows, their gradients, the columns as gathered and in order, and the same of the next group, under way.
    group = together * (3 * units + 4 * columns)
    block = 3 * min(together * own * rows, max(BLOCK_ELEMENTS, rows))  # logits, slopes, and one more on the way
    return WordShape(groups, 4 * (group + block))


@cache
def _step_bytes(model: str, step: MicroStep) -> dict[str, int]:
    settings = ModelSettings(**json.loads(model))
    return micro_step_bytes(transformers_config(settings, step.sequence_length, step.vocabulary), step)


@cache
def _parameter_sizes(model: str, sequence_length: int, vocabulary: int) -> tuple[int, ...]:
    settings = ModelSettings(**json.loads(model))
    return tuple(parameter.numel() for parameter in empty_model(settings, sequence_length, vocabulary).parameters())


def obstacles(settings: RunSettings, machine: Machine, memories: list[StageMemory]) -> list[str]:
    """Why the run cannot be; empty if it fits."""
    gpu, found = machine.gpu, []
    engine = read_engine(settings.deepspeed)
    if not gpu.bf16 and not engine.fp16 and (engine.weight_bytes == 2 or engine.autocast):
        found.append(f"{gpu.name} does not compute in bf16: {settings.deepspeed} cannot be used there")
    for memory in memories:
        if memory.needed > gpu.memory_gib * GIB:
            found.append(
                f"{memory.plan.name}: {memory.needed / GIB:.1f} GiB of each {gpu.name} are needed and "
                f"{gpu.memory_gib:.1f} are there"
            )
    return found


def same_precision(folder: Path, gpu: Gpu, engine: Engine) -> list[Path]:
    """The ds_configs beside a run's own that compute as it does, in what this GPU can; the fastest first."""
    wants_fp16 = engine.fp16 or (engine.weight_bytes == 2 and not gpu.bf16)
    found = []
    for path in sorted(folder.glob("*.json")):
        other = read_engine(path)
        if other.weight_bytes == engine.weight_bytes and other.fp16 == wants_fp16 and other.autocast == engine.autocast:
            cost = (other.swaps, other.offloads_weights, other.offloads_optimizer, other.stage)
            found.append((cost, path))
    return [path for _, path in sorted(found)]
