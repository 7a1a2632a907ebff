"""A run, built from its configuration: tokenizer, text, table, stage, model; everything but the engine."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from prealign_ds.alignment.stage import AlignmentStage, JointModel
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.switcher import CodeSwitcher
from prealign_ds.config import CorpusSettings, RunSettings
from prealign_ds.corpus.clone import CloneTokens, clone_ids
from prealign_ds.corpus.tokenizer import load_tokenizer, token_bytes, tokenizer_digest
from prealign_ds.corpus.tokens import CorpusTokens
from prealign_ds.files import numbered_lines
from prealign_ds.knowledge.directions import directions_of
from prealign_ds.knowledge.plan import KnowledgePlan
from prealign_ds.model import (
    align_perfectly,
    build_model,
    load_weights,
    model_config,
    set_weights,
    vocabulary_size,
)
from prealign_ds.stream.stream import CodeSwitchedStream, StreamCorpus
from prealign_ds.training.checkpoint import checkpoint_weights, is_checkpoint
from prealign_ds.training.environment import World
from prealign_ds.training.kernels import Kernels


class Run:
    """What the stages of one run share.

    Args:
        settings: The configuration.
        world: This process among the ranks.

    Raises:
        ValueError: If a file is missing, damaged, or does not fit the others.
    """

    def __init__(self, settings: RunSettings, world: World):
        self.settings = settings
        self.world = world
        self.dir = settings.run_dir
        self.tokenizer = load_tokenizer(settings.data.tokenizer)
        self.tokenizer_digest = tokenizer_digest(settings.data.tokenizer)
        self.vocabulary = vocabulary_size(self.tokenizer, settings.has_clone)
        self.corpora = [self._open(corpus) for corpus in settings.data.corpora]
        self.held_out = {corpus.language: self._open(corpus) for corpus in settings.data.held_out}
        self.model_config = model_config(settings.model, settings.data.sequence_length, self.vocabulary, self.tokenizer)
        lengths = [len(piece or b"") for piece in token_bytes(self.tokenizer)]
        self.byte_lengths = np.array(lengths * (2 if settings.has_clone else 1))

    def _open(self, corpus: CorpusSettings) -> CorpusTokens | CloneTokens:
        tokens = CorpusTokens(corpus.path, corpus.split)
        tokens.check_tokenizer(self.tokenizer_digest, self.settings.data.tokenizer)
        return CloneTokens(tokens, clone_ids(self.tokenizer)) if corpus.clone else tokens

    @cached_property
    def table(self) -> AlignmentTable:
        """The alignment table, cut to its most frequent share, with its held-out words marked."""
        assert self.settings.table is not None, "the configuration is checked to have one"
        settings = self.settings.table
        if not settings.path.is_file():
            raise ValueError(f"table.path: {settings.path}: no such file; build it with tools/build_table.py")
        return (
            AlignmentTable.load(settings.path)
            .top(settings.top_share)
            .hold_out(settings.held_out_share, self.settings.seed)
        )

    @cached_property
    def knowledge(self) -> KnowledgePlan | None:
        """The artificial facts of the run, checked to fit into it; None if it tells none."""
        settings, data = self.settings.knowledge, self.settings.data
        if settings is None:
            return None
        table = self.table if self.settings.table is not None else None
        known = {word.lower() for word in (*table.words, *table.edge_text)} if table else set()
        known |= {word.strip().lower() for path in settings.words for _, word in numbered_lines(path)}
        directions = directions_of(
            settings.directions, data.source_language, [corpus.language for corpus in data.corpora]
        )
        plan = KnowledgePlan(
            settings, directions, data.source_language, data.sequence_length, self.tokenizer, self.settings.seed, known
        )
        plan.check(self.settings.lm_tokens // data.sequence_length)
        return plan

    def stream(self, stage: str) -> CodeSwitchedStream:
        """The samples of a stage; stage 1 reads the same ones as stage 2 would, without switching."""
        settings = self.settings
        switcher = None
        if stage == "pretrain" and settings.switches:
            switch = settings.codeswitch
            weights = switch.language_ratios or switch.language_weights
            fixed = switch.language_ratios is not None
            switcher = CodeSwitcher(self.table, self.tokenizer, switch.mode, weights, fixed, switch.unit)
        corpora = [
            StreamCorpus(
                corpus.name,
                corpus.language,
                tokens,
                corpus.weight,
                corpus.language == settings.data.source_language,
                tokens.digest,
            )
            for corpus, tokens in zip(settings.data.corpora, self.corpora, strict=True)
        ]
        return CodeSwitchedStream(
            corpora,
            settings.data.sequence_length,
            settings.seed,
            switcher,
            lambda sample: settings.codeswitch.ratio_at(sample * settings.data.sequence_length),
            settings.data.blend_block,
            self.knowledge,
        )

    def fingerprint(self, stream: CodeSwitchedStream) -> str:
        """Hash of everything that decides the stream's samples."""
        switched = stream.switcher is not None
        return stream.fingerprint(
            tokenizer=self.tokenizer_digest,
            table=self.table.digest() if self.settings.table is not None else None,
            codeswitch=self.settings.codeswitch.model_dump() if switched else None,
        )

    def module(self, stage: str, kernels: Kernels) -> JointModel:
        """The model that a stage starts from: stage 1's result, the weights to start from, or new ones."""
        settings = self.settings
        model = self.new_model(kernels.attention)
        if stage == "pretrain" and "align" in settings.stages:
            load_weights(model, self.dir / "align")
        alignment = None
        if stage == "align" or settings.keeps_aligning:
            alignment = AlignmentStage(self.table, self.tokenizer, settings.align, settings.seed)
            alignment.layer_weights(settings.model.num_layers + 2)
        kernels.apply(model)
        return JointModel(model, self.vocabulary, alignment, kernels.lm_loss)

    def new_model(self, attention: str = "sdpa") -> PreTrainedModel:
        """The model before any training."""
        settings = self.settings
        model = build_model(
            self.model_config, settings.model, settings.seed, attention, self.tokenizer, self.vocabulary
        )
        if settings.model.perfect_alignment:
            align_perfectly(model, torch.from_numpy(clone_ids(self.tokenizer)))
        return model

    def saved_model(self, folder: Path) -> PreTrainedModel:
        """A saved model, or that of a complete checkpoint, whole on every rank, in fp32 and ready to evaluate."""
        settings = self.settings.model.model_copy(update={"start_from": None})
        model = build_model(self.model_config, settings, self.settings.seed)
        if is_checkpoint(folder):
            set_weights(model, checkpoint_weights(folder), folder)
        else:
            load_weights(model, folder, self.vocabulary)
        return model.to(self.world.device).eval()  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        """What goes beside saved weights."""
        return {
            "vocabulary": self.vocabulary,
            "tokenizer_sha256": self.tokenizer_digest,
            "settings": self.settings.model_dump(mode="json"),
        }
