"""The configuration of a run: one typed tree in which unknown keys fail; ``recipe`` reads it from YAML.

Every field is followed by its description.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prealign_ds.files import shipped

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def _parse_tokens(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"([\d_]+(?:\.\d+)?)\s*([kMB]?)", value.strip())):
        return round(float(match[1].replace("_", "")) * _UNITS[match[2]])
    return value


Tokens = Annotated[int, BeforeValidator(_parse_tokens), Field(ge=0)]
"""A number of tokens: an integer, or a string such as ``3.5M`` or ``10B``."""


class Settings(BaseModel):
    """A section: unknown keys fail, values are checked, fields carry their docstrings."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class ModelSettings(Settings):
    """The causal language model."""

    architecture: str = "gpt2"
    """Model type of transformers: gpt2, llama, gpt_neox, ..."""
    num_layers: int = Field(12, ge=1)
    """Transformer blocks L."""
    hidden_size: int = Field(1024, ge=1)
    """Width H."""
    num_heads: int = Field(16, ge=1)
    """Attention heads; divides hidden_size."""
    tied_embeddings: bool = True
    """Whether the output embedding is the input embedding. Then alignment layers 0 and L+1 coincide; both count."""
    vocabulary_multiple: int = Field(128, ge=1)
    """The vocabulary is padded to a multiple of this."""
    overrides: dict[str, Any] = {}
    """Further keys of the architecture's transformers configuration."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass, block by block."""
    start_from: Path | None = None
    """Folder of a saved model whose weights to start from; None draws them from the seed."""
    perfect_alignment: bool = False
    """En-Clone only: start every clone token with its original's embeddings (the paper's upper bound)."""

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        return self


class KernelSettings(Settings):
    """Which implementation computes what; ``auto`` takes the fastest that is here and fits, anything else is forced."""

    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention of transformers: plain, PyTorch's scaled_dot_product_attention, or the package flash-attn."""
    optimizer: Literal["auto", "torch", "deepspeed", "apex"] = "auto"
    """AdamW: PyTorch's fused one, DeepSpeed's (FusedAdam; DeepSpeedCPUAdam with offload), or apex's FusedAdam."""
    normalization: Literal["auto", "torch", "apex"] = "auto"
    """Layer norms: PyTorch's, or NVIDIA apex's fused ones."""
    activation: Literal["auto", "plain", "fused"] = "auto"
    """GPT-2's GELU: transformers' chain of eight operations (plain), or PyTorch's one."""
    lm_loss: Literal["auto", "plain", "compiled", "chunked", "liger"] = "auto"
    """plain holds all logits, several times; compiled (torch.compile) once and their gradient, in the model's type;
    chunked (PyTorch's linear_cross_entropy) and liger (package liger-kernel) never hold all."""
    compile: Literal["auto", "off", "blocks"] = "auto"
    """torch.compile of each transformer block."""
    tf32: Literal["auto", "on", "off"] = "auto"
    """TF32 for what is left of fp32 matrix products on NVIDIA GPUs from Ampere on."""


class CorpusSettings(Settings):
    """One tokenized corpus."""

    name: str
    """Its name in logs; it also keys shuffling and switching."""
    path: Path
    """Folder from tools/tokenize_corpus.py, or the prefix of a Megatron .bin/.idx pair."""
    language: str
    """Language code; ``clone`` for En-Clone."""
    split: str = "train"
    """Split in the folder."""
    weight: float = Field(1.0, gt=0)
    """Share of the training samples, in any unit, token counts for example. Not used for held-out text."""
    clone: bool = False
    """Read the corpus as its En-Clone: every token id plus V."""


class DataSettings(Settings):
    """Text: what is trained on, and what perplexity is measured on."""

    tokenizer: Path
    """Folder of the tokenizer."""
    sequence_length: int = Field(1024, ge=2)
    """Tokens S in a sample."""
    source_language: str = "en"
    """Language whose words are aligned with translations and code-switched."""
    corpora: list[CorpusSettings] = Field(min_length=1)
    """Training corpora."""
    held_out: list[CorpusSettings] = []
    """Held-out corpora for perplexity, one a language."""
    blend_block: int | None = Field(None, ge=1)
    """Samples in a block of the blend; None takes the smallest that holds the weights exactly."""
    num_workers: int = Field(1, ge=1)
    """Threads a rank that prepare batches ahead; one is best unless the disk answers slowly."""

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        for kind, corpora in (("corpora", self.corpora), ("held_out", self.held_out)):
            names = [corpus.name if kind == "corpora" else corpus.language for corpus in corpora]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind}: {twice} occur more than once")
        return self


class TableSettings(Settings):
    """The alignment table."""

    path: Path
    """Parquet or JSONL file from tools/build_table.py."""
    top_share: float = Field(1.0, gt=0, le=1)
    """Use only the most frequent share of W, by types (the paper's beta)."""
    held_out_share: float = Field(0.0, ge=0, lt=1)
    """Share of W whose pairs neither stage sees; kept to measure alignment on."""


class CodeSwitchSettings(Settings):
    """Code-switching of source-language text in stage 2."""

    mode: Literal["off", "input_only", "vanilla"] = "input_only"
    """input_only (Eq. 6) never changes targets; vanilla (Eq. 5) trains on the translations too."""
    unit: Literal["word", "sentence"] = "word"
    """What is drawn: each word by itself, or (beyond the paper) whole sentences, all of whose covered words are then
    switched into one language. The ratio is that of the words either way."""
    ratio: float = Field(0.05, ge=0, le=1)
    """Probability to switch a word that the table covers."""
    language_weights: dict[str, float] | None = None
    """Share of each language in the switched words; None gives all languages the same."""
    language_ratios: dict[str, float] | None = None
    """In place of ratio and language_weights: probability to switch a word into each language. A word without a
    translation there stays as it is, where weights would give its share to the other languages."""
    schedule: list[tuple[Tokens, Annotated[float, Field(ge=0)]]] = []
    """Points (LM tokens of the run, factor of the ratio), with straight lines between them and constant before and
    after; two points at one place are a step. Empty is constant."""

    @model_validator(mode="after")
    def _check(self) -> CodeSwitchSettings:
        if self.language_ratios is not None:
            if self.language_weights is not None or self.ratio != type(self).model_fields["ratio"].default:
                raise ValueError("language_ratios: take the place of ratio and language_weights; leave those out")
            if not self.language_ratios or min(self.language_ratios.values()) < 0:
                raise ValueError("language_ratios: give a probability of 0 or more for one language or more")
        if [place for place, _ in self.schedule] != sorted(place for place, _ in self.schedule):
            raise ValueError("schedule: its points must be in the order of their tokens")
        largest = self.total_ratio * max([factor for _, factor in self.schedule], default=1.0)
        if largest > 1:
            raise ValueError(f"codeswitch: words would be switched with a probability of {largest:g}, above 1")
        return self

    @property
    def total_ratio(self) -> float:
        """Probability to switch a word that the table covers in all languages, before the schedule."""
        return self.ratio if self.language_ratios is None else sum(self.language_ratios.values())

    def ratio_at(self, tokens: int) -> float:
        """Probability to switch a covered word in a sample that begins ``tokens`` LM tokens into the run."""
        after = bisect_right([place for place, _ in self.schedule], tokens)
        if after == 0 or after == len(self.schedule):
            factor = self.schedule[max(0, after - 1)][1] if self.schedule else 1.0
        else:
            (low, first), (high, last) = self.schedule[after - 1 : after + 1]
            factor = first + (last - first) * (tokens - low) / (high - low)
        return self.total_ratio * factor


class OptimizerSettings(Settings):
    """AdamW and the learning rate, which advances in absolute tokens."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    final_learning_rate: float = Field(0.0, ge=0)
    """Learning rate at the end of the decay."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Form of the decay after a linear warm-up."""
    warmup_tokens: Tokens | None = None
    """LM tokens of linear warm-up; None is 5 % of the stage, 1 % in stage 2."""
    decay_tokens: Tokens | None = None
    """LM tokens of the stage at which the decay ends; None is the stage's own length."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of matrices; norms and biases have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    eps: float = Field(1e-8, gt=0)
    """Adam's epsilon."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""


NumFacts = Annotated[int, Field(ge=4, multiple_of=4)]


class KnowledgeSettings(Settings):
    """Artificial facts told in the data and asked at the end of their period (the paper's CLKA)."""

    period_tokens: Tokens = Field(ge=1)
    """LM tokens of a period: the paper's 250 steps are 250 x pretrain.batch_tokens. Whole samples."""
    start_tokens: Tokens = 0
    """LM tokens of the run, stage 1 included, before the first period. Whole samples."""
    facts: NumFacts = 20
    """Facts of a period in each direction and frequency; four have one relation and are each other's distractors."""
    frequencies: list[Annotated[int, Field(ge=1)]] = Field([1, 4, 16, 64], min_length=1)
    """How often a fact is told in its period."""
    directions: list[str] | dict[str, NumFacts] | None = None
    """``told->asked`` languages, or with each the ``facts`` it has; None takes, with the source language s and each
    other x, s->s, x->x, s->x, x->s."""
    script: Literal["same", "transliterated"] = "same"
    """Names in Latin letters everywhere, or in the script of the language (ru, ar, zh)."""
    templates: Path | None = None
    """Folder of own templates, LANGUAGE.yaml as in prealign_ds/knowledge/templates; None takes those."""
    words: list[Path] = []
    """Files of words, one a line (tools/build_table.py --words): beside those of the table, they become no names."""


class StageSettings(Settings):
    """What both stages have."""

    batch_tokens: Tokens
    """LM tokens in a global batch: a multiple of sequence_length x ranks x micro_batch_size."""
    micro_batch_size: int = Field(ge=1)
    """Samples that one rank handles at once."""
    optimizer: OptimizerSettings
    """AdamW and its schedule."""


class AlignSettings(StageSettings):
    """Stage 1: alignment init."""

    batch_tokens: Tokens = 0
    """LM tokens in a global batch of stage 1; 0 is stage 2's."""
    micro_batch_size: int = Field(8, ge=1)
    """Samples that one rank handles at once."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=5e-4, schedule="linear")
    """AdamW and its schedule."""
    budget_share: float = Field(0.05, gt=0, lt=1)
    """Share of lm_tokens that stage 1 uses."""
    words_per_step: int = Field(2048, ge=1)
    """Source entries in a step's GLOBAL word batch, whatever the number of ranks."""
    translations_per_language: int = Field(1, ge=1)
    """At most this many translations of an entry in each language and step."""
    language_weights: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Probability that a word's translations in a language take part when the word is drawn; 1 where none is given."""
    temperature: float = Field(0.1, gt=0)
    """tau in Eq. 2."""
    weight: float = Field(1.0, ge=0)
    """Weight of L_align beside L_LM."""
    layers: Literal["all"] | list[int] | dict[int, Annotated[float, Field(ge=0)]] = "all"
    """Layers 0 .. L+1 that are aligned; with a number for each, what its loss is multiplied by."""
    positives: Literal["edges", "entry"] = "edges"
    """edges: a word and each translation; entry: all rows of an entry are positives of each other."""


class PretrainSettings(StageSettings):
    """Stage 2: pretraining."""

    batch_tokens: Tokens = 1_048_576
    """LM tokens in a global batch."""
    micro_batch_size: int = Field(8, ge=1)
    """Samples that one rank handles at once."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=3e-4, final_learning_rate=3e-5)
    """AdamW and its schedule."""
    align_every_steps: int = Field(0, ge=0)
    """Beyond the paper: every so many steps also have a word batch and the alignment loss of ``align``; 0 has none."""


class SimilaritySettings(Settings):
    """Similarity and retrieval of aligned words, layer by layer."""

    words: int = Field(1000, ge=1)
    """Words of W in each language, drawn uniformly, and as many of the held-out ones."""
    neighbours: int = Field(10, ge=1)
    """k of CSLS: nearest neighbours that say how crowded a word's surroundings are."""
    batch_size: int = Field(256, ge=1)
    """Words that one rank encodes at once."""


class LeakageSettings(Settings):
    """Share of source-language generations that hold another language (paper Table 3)."""

    samples: int = Field(1000, ge=1)
    """Texts to generate."""
    prompt_tokens: int = Field(16, ge=1)
    """Tokens of a prompt, from held-out text of the source language."""
    new_tokens: int = Field(128, ge=1)
    """Tokens to generate after a prompt, at temperature 1."""
    batch_size: int = Field(32, ge=1)
    """Texts that one rank generates at once."""


class ClassificationSettings(Settings):
    """Zero-shot cross-lingual transfer: fine-tuning on the source language, accuracy in every language."""

    train: str
    """Labelled source-language text: a .tsv (label, text), .jsonl or .parquet file, or hub:DATASET:CONFIG:SPLIT."""
    test: dict[str, str | None]
    """Labelled text by language, None for one without any; that of ``clone`` is source text, read as En-Clone."""
    seeds: list[int] = Field([1, 2, 3], min_length=1)
    """Each decides the head's weights and the order of the text in a training of its own."""
    epochs: int = Field(3, ge=1)
    """Passes over the training text."""
    batch_size: int = Field(32, ge=1)
    """Texts in a GLOBAL batch: a multiple of the ranks. The last, incomplete batch of an epoch is left out."""
    learning_rate: float = Field(5e-5, gt=0)
    """AdamW's peak learning rate."""
    warmup_share: float = Field(0.1, ge=0, lt=1)
    """Share of the steps with linear warm-up; after it the rate falls linearly to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay of matrices."""
    max_tokens: int = Field(0, ge=0)
    """Cut texts to so many tokens, the longer part of a pair first; 0 is what the model's positions allow."""


class EvaluationSettings(Settings):
    """Measurements during training."""

    every_tokens: Tokens = 0
    """LM tokens between measurements; 0 measures at the end of each stage only."""
    max_tokens: Tokens = 0
    """Measure perplexity on at most this many tokens of each held-out corpus, its first; 0 uses all."""
    batch_size: int = Field(8, ge=1)
    """Samples that one rank evaluates at once."""
    similarity: SimilaritySettings | None = None
    """Similarity of aligned words; None does not measure it."""
    leakage: LeakageSettings | None = None
    """Script leakage; None does not measure it."""
    classification: ClassificationSettings | None = None
    """Zero-shot cross-lingual transfer; None does not measure it."""


class CheckpointSettings(Settings):
    """Checkpoints."""

    every_tokens: Tokens = 0
    """LM tokens between checkpoints; 0 saves at the end of each stage only."""
    keep: int = Field(2, ge=1)
    """The newest checkpoints of a stage to keep."""
    keep_every_tokens: Tokens = 0
    """Also keep for good the first checkpoint at or after every multiple of so many LM tokens; 0 keeps none."""
    accept_other_data: bool = False
    """Resume although the text, table or switching has changed: the rest of the run reads the new data."""


class GuardSettings(Settings):
    """What ends a run that goes wrong."""

    skipped_steps: int = Field(20, ge=1)
    """Stop after so many steps in a row whose gradient is not finite; fp16 skips some while it finds its loss scale."""
    hang_seconds: float = Field(1800, gt=0)
    """End the job when the slowest rank stays in one place (a forward, a save) for so long."""
    trial_batch: bool = True
    """Before the first step, run the largest batches forward, so that memory that does not suffice shows at once."""


class WandbSettings(Settings):
    """Weights & Biases. Its key comes from the environment (WANDB_API_KEY) and is never a setting."""

    project: str = Field(min_length=1)
    """Project."""
    group: str | None = None
    """Group of runs; None is the name of run_dir. Each start of the training is a W&B run of its own."""
    team: str | None = None
    """Team or user; None is the default of the key."""


class LogSettings(Settings):
    """Logs; metrics.jsonl and eval.jsonl are always written, and exact after a resume. The rest only grows."""

    every_steps: int = Field(1, ge=1)
    """Steps between lines in metrics.jsonl."""
    gradient_cosine_every_steps: int = Field(0, ge=0)
    """Steps between measurements of the cosine between the gradients of both losses, where a step has both; 0 measures
    none. One takes two more backward passes and the memory of two fp32 gradients (tools/plan.py does not count them),
    and changes nothing; not under ZeRO-3 or fp16."""
    tensorboard: bool = False
    """Also write TensorBoard events, through DeepSpeed's monitor."""
    csv: bool = False
    """Also write a CSV file for each number into run_dir/csv, through DeepSpeed's monitor."""
    wandb: WandbSettings | None = None
    """Also send the numbers to Weights & Biases (package wandb), through DeepSpeed's monitor; None does not."""


class RunSettings(Settings):
    """A whole run."""

    run_dir: Path
    """Folder of this run: configuration, logs, checkpoints, final model."""
    seed: int = 1234
    """Decides weights, data order, word batches and switches."""
    world_size: int | None = Field(None, ge=1)
    """Refuse to start with another number of ranks; None takes what the launcher gives."""
    deepspeed: Annotated[Path, AfterValidator(shipped)]
    """DeepSpeed JSON from ds_configs/: ZeRO stage, precision, offload, communication."""
    lm_tokens: Tokens
    """LM tokens of the whole run, stage 1 included."""
    stages: list[Literal["align", "pretrain"]] = ["align", "pretrain"]
    """Stages to run, in this order."""
    model: ModelSettings = ModelSettings()
    """The model."""
    kernels: KernelSettings = KernelSettings()
    """Which implementation computes what."""
    data: DataSettings
    """Text."""
    table: TableSettings | None = None
    """The alignment table; needed by stage 1 and by code-switching."""
    align: AlignSettings = AlignSettings()
    """Stage 1."""
    codeswitch: CodeSwitchSettings = CodeSwitchSettings()
    """Code-switching in stage 2."""
    pretrain: PretrainSettings = PretrainSettings()
    """Stage 2."""
    knowledge: KnowledgeSettings | None = None
    """Artificial facts in the data of both stages; None tells none."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Measurements during training."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Checkpoints."""
    guards: GuardSettings = GuardSettings()
    """What ends a run that goes wrong."""
    log: LogSettings = LogSettings()
    """Logs."""

    @model_validator(mode="after")
    def _check(self) -> RunSettings:
        problems = []
        if self.stages not in (["align", "pretrain"], ["align"], ["pretrain"]):
            problems.append(f"stages: {self.stages} is not align, pretrain, or align then pretrain")
        if self.table is None and ("align" in self.stages or self.switches or self.keeps_aligning):
            problems.append("table: missing; stage 1 and code-switching need it (or set codeswitch.mode=off)")
        clones = any(corpus.clone for corpus in self.data.corpora)
        for corpus in self.data.corpora + self.data.held_out:
            if corpus.clone != (corpus.language == "clone"):
                problems.append(f"data: corpus {corpus.name}: clone: true and language: clone go together")
        if self.model.perfect_alignment and not clones:
            problems.append("model.perfect_alignment: needs an En-Clone corpus (clone: true)")
        if not any(corpus.language == self.data.source_language for corpus in self.data.corpora) and self.switches:
            problems.append(f"data.source_language: no corpus in {self.data.source_language}, nothing to code-switch")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def switches(self) -> bool:
        """Whether stage 2 code-switches."""
        return "pretrain" in self.stages and self.codeswitch.mode != "off" and self.codeswitch.total_ratio > 0

    @property
    def keeps_aligning(self) -> bool:
        """Whether stage 2 has steps with an alignment loss."""
        return "pretrain" in self.stages and self.pretrain.align_every_steps > 0

    @property
    def has_clone(self) -> bool:
        """Whether the vocabulary holds En-Clone."""
        return any(corpus.clone for corpus in self.data.corpora + self.data.held_out)
