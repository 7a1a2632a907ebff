"""Megatron-Core with code-switched samples and the alignment loss.

:class:`CodeSwitchedGPTDataset` is megatron-core's ``GPTDataset`` with other inputs: same samples, same order, same
index files. :class:`AlignableGPT` shows a ``GPTModel`` to the alignment stage. Ranks must be data-parallel.

Shape letters: B rows, T tokens of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prealign_ds.codeswitch.spans import CONTEXT
from prealign_ds.codeswitch.switcher import IGNORED, CodeSwitcher, Switched
from prealign_ds.randomness import key_of, mix_array

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # megatron-core warns about every optional accelerator library it does not find
    from megatron.core.datasets.gpt_dataset import (
        GPTDataset,
        GPTDatasetConfig,
        _get_ltor_masks_and_position_ids,
    )
    from megatron.core.datasets.utils import Split

_LOW_BITS = np.uint64(0xFFFFFFFF)


@dataclass
class CodeSwitchedGPTDatasetConfig(GPTDatasetConfig):
    """Megatron's configuration, and what is switched how.

    Raises:
        ValueError: If the switcher is missing, the ratio is no probability, or ``switched`` names a corpus that is not
            in the blend.
    """

    switcher: CodeSwitcher | None = None
    """The code-switcher."""
    switched: Mapping[str, str] = field(default_factory=dict)
    """The corpora in the source language: their path prefixes, as in the blend, and a name of each, which keys its
    switches. With the name and the seed of a :class:`CodeSwitchedStream`, the words of a pass are switched as there.
    Others stay plain."""
    switch_ratio: float = 0.05
    """Probability to switch a covered word, in the training split; the others stay plain."""
    switch_seed: int | None = None
    """Decides the switches; None is ``random_seed``."""

    def __post_init__(self) -> None:
        """Check the own fields."""
        super().__post_init__()
        if self.switcher is None:
            raise ValueError("switcher: None; give a CodeSwitcher(table, tokenizer), or use GPTDatasetConfig")
        if not 0 <= self.switch_ratio <= 1:
            raise ValueError(f"switch_ratio: {self.switch_ratio} is no probability; give 0 to 1, the paper's is 0.05")
        blends = [blend for blend in (self.blend, *(self.blend_per_split or ())) if blend]
        known = {prefix for prefixes, _ in blends for prefix in prefixes}
        if unknown := sorted(set(self.switched) - known):
            raise ValueError(f"switched: {unknown} are not in the blend, which has {sorted(known)}; name its prefixes")

    @classmethod
    def extend(cls, config: GPTDatasetConfig, **own: Any) -> CodeSwitchedGPTDatasetConfig:
        """``config``, as Megatron's scripts make it, with the own fields."""
        return cls(**{item.name: getattr(config, item.name) for item in fields(config) if item.init}, **own)


class CodeSwitchedGPTDataset(GPTDataset):
    """``GPTDataset`` whose words are replaced by translations in the tokens, and never in the labels (paper Eq. 6).

    Sample k owns the tokens that Megatron gives it, and keeps its fixed length S. A replacement of as many tokens as
    the word moves nothing. One of more moves what follows to the right: what leaves the sample at its end is lost to
    this pass. One of fewer moves it to the left: the places that become free show the tokens that follow in Megatron's
    order and predict nothing. So the labels under ``loss_mask`` 1 are GPTDataset's in their order, without those of a
    switched word's second and later tokens and of what was cut. Masked labels are 0.

    The draw of a word depends on (seed, corpus, visit, token offset in the corpus) alone, where visit counts the
    earlier passes over its document: the number of samples asked for, which decides Megatron's order, does not decide
    what a visit switches. A word that two samples share is not switched. Ratio 0, other splits and other corpora are
    GPTDataset's.
    """

    config: CodeSwitchedGPTDatasetConfig

    @property
    def name(self) -> str | None:
        """The corpus, if its words are switched."""
        train = self.index_split == Split.train and self.config.switch_ratio > 0
        return self.config.switched.get(self.dataset_path) if train else None

    def __getitem__(self, idx: int | None) -> dict[str, Tensor]:
        """Sample ``idx``: ``tokens``, ``labels``, ``loss_mask``, ``position_ids``, and ``attention_mask`` if wanted."""
        sample = super().__getitem__(idx)
        if idx is None or self.name is None:
            return sample
        done, config = self.switched(idx), self.config
        tokens, targets = torch.from_numpy(done.input_ids), torch.from_numpy(done.targets)
        sample["loss_mask"] = torch.ones_like(sample["loss_mask"])
        if not self.masks_and_position_ids_are_cacheable:  # they depend on where documents end in the tokens
            masks = _get_ltor_masks_and_position_ids(
                tokens,
                config.tokenizer.eod,
                config.reset_position_ids,
                config.reset_attention_mask,
                config.eod_mask_loss,
                config.create_attention_mask,
            )
            found = dict(zip(("attention_mask", "loss_mask", "position_ids"), masks, strict=True))
            sample |= {key: value for key, value in found.items() if key in sample}
        pad = IGNORED if self._pad_token_id is None else self._pad_token_id  # which Megatron never shows
        ignored = (targets == IGNORED) | (targets == pad)
        sample["tokens"] = tokens.masked_fill(tokens == pad, 0)
        sample["labels"] = targets.masked_fill(ignored, 0)
        sample["loss_mask"] = sample["loss_mask"].masked_fill(ignored, 0.0)
        return sample

    def switched(self, idx: int) -> Switched:
        """Inputs and targets (-100 for none) of sample ``idx``, int64 of shape (S,), with the counts of words."""
        config, switcher = self.config, self.config.switcher
        if self.name is None or switcher is None:
            raise ValueError(f"{self.dataset_path}, {self.index_split.name}: not switched; name it in `switched`")
        if self.shuffle_index is None:
            self._query_document_sample_shuffle_indices(idx)  # loads the indices where config defers them
        place, offset = map(int, self.sample_index[self.shuffle_index[idx]])
        begin, before = self._step_back(place, offset, CONTEXT)
        row, bits = self._read(begin, before + config.sequence_length + 1 + CONTEXT)
        length = config.sequence_length - (not config.add_extra_token_to_sequence)  # the training split has no padding
        done = switcher.switch_row(row, before, bits[before : before + length], config.switch_ratio)
        missing = config.sequence_length - len(done.input_ids)
        if missing > 0:
            if missing > 1 + CONTEXT:
                row, _ = self._read(begin, before + length + missing)
            following = row[before + length :][:missing]
            zeros = np.zeros(missing - len(following), dtype=np.int64)
            done.input_ids = np.concatenate([done.input_ids, following, zeros])
            done.targets = np.concatenate([done.targets, np.full(missing, IGNORED, dtype=np.int64)])
        done.input_ids, done.targets = (part[: config.sequence_length] for part in (done.input_ids, done.targets))
        return done

    def _step_back(self, place: int, offset: int, tokens: int) -> tuple[tuple[int, int], int]:
        """The (place in the document index, offset) up to ``tokens`` tokens before another, and how many they are."""
        reach = offset
        while reach < tokens and place > 0:
            place -= 1
            reach += int(self.dataset.sequence_lengths[self.document_index[place]])
        before = min(tokens, reach)
        return (place, reach - before), before

    def _read(self, start: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to ``count`` tokens in Megatron's order from a place on, int64, and 64 random bits for each."""
        place, offset = start
        index, tokens, draws = self.dataset.index, [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        while count > 0 and place < len(self.document_index):
            document = int(self.document_index[place])
            number = min(count, int(self.dataset.sequence_lengths[document]) - offset)
            tokens.append(self.dataset.get(document, offset=offset, length=number))
            first = int(index.sequence_pointers[document]) // index.dtype_size + offset
            visit = 0 if self._visits is None else int(self._visits[place])
            key = key_of("switch", self._switch_seed, self.name or "", visit)
            draws.append(mix_array(np.arange(first, first + number, dtype=np.uint64) ^ np.uint64(key)))
            count, place, offset = count - number, place + 1, 0
        return np.concatenate(tokens, dtype=np.int64), np.concatenate(draws)

    @property
    def _switch_seed(self) -> int:
        seed = self.config.switch_seed
        return self.config.random_seed if seed is None else seed

    @cached_property
    def _visits(self) -> np.ndarray | None:
        """For each place of the document index, how often its document came before; None in a single pass."""
        if len(self.document_index) == len(self.indices):
            return None
        order = np.argsort(self.document_index, kind="stable")
        fresh = np.flatnonzero(np.diff(self.document_index[order], prepend=-1))
        visits = np.empty(len(order), dtype=np.int32)
        visits[order] = np.arange(len(order)) - np.repeat(fresh, np.diff(fresh, append=len(order)))
        return visits


# Megatron names its index files, and hashes what they hold, by the class too. The indices are GPTDataset's.
CodeSwitchedGPTDataset.__name__ = GPTDataset.__name__


class AlignableGPT:
    """A megatron-core ``GPTModel`` as :meth:`AlignmentStage.loss` wants models: embeddings, and states of all layers.

    Words go through the blocks alone, without the output layer. Forward hooks collect the states, which Megatron keeps
    as (T, B, H); the stage masks and averages them (Eq. 1).

    Args:
        model: A ``GPTModel``, or what wraps it (``Float16Module``, Megatron's DDP).

    Raises:
        ValueError: If the model is split over ranks: tensor, pipeline or context parallel size is not 1.
    """

    def __init__(self, model: Any):
        while hasattr(model, "module"):
            model = model.module
        sizes = {f"{kind}_model_parallel_size": 1 for kind in ("tensor", "pipeline")} | {"context_parallel_size": 1}
        split = {name: size for name in sizes if (size := getattr(model.config, name, 1)) != 1}
        if split:
            raise ValueError(f"{split}: the alignment loss needs whole models on data-parallel ranks; set these to 1")
        self._model = model

    def get_input_embeddings(self) -> nn.Module:
        """The look-up of the input embedding, without positions."""
        return self._model.embedding.word_embeddings

    def get_output_embeddings(self) -> Any:
        """Something whose ``weight`` is the output embedding, (V, H)."""
        model = self._model
        tied = model.share_embeddings_and_output_weights
        return SimpleNamespace(weight=self.get_input_embeddings().weight if tied else model.output_layer.weight)

    def base_model(self, input_ids: Tensor, **_: Any) -> Any:
        """Something whose ``hidden_states`` are L + 1 tensors (B, T, H): embedded rows, blocks 1 .. L-1, final norm.

        Words are padded on the right and attention is causal, so that no token sees padding and no mask is needed.

        Args:
            input_ids: int64 of shape (B, T).
        """
        model, states = self._model, []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        blocks = [model.embedding, *model.decoder.layers[:-1], model.decoder]
        hooks = [block.register_forward_hook(keep) for block in blocks]
        length = input_ids.shape[1]
        positions_BT = torch.arange(length, device=input_ids.device).expand_as(input_ids)
        future_TT = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).triu(1)
        try:
            with _blocks_alone(model):
                model(input_ids, positions_BT, future_TT[None, None])
        finally:
            for hook in hooks:
                hook.remove()
        return SimpleNamespace(hidden_states=tuple(states_TBH.transpose(0, 1) for states_TBH in states))


@contextmanager
def _blocks_alone(model: Any) -> Iterator[None]:
    """Without the output layer, and without recomputation of whole blocks, whose first pass keeps no gradient."""
    config = model.decoder.config
    kept = model.post_process, config.recompute_granularity
    model.post_process = False
    if config.recompute_granularity == "full":
        config.recompute_granularity = None
    try:
        yield
    finally:
        model.post_process, config.recompute_granularity = kept
