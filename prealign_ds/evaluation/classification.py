"""Zero-shot cross-lingual transfer: fine-tune on labelled text of one language, test in all (paper ZS-CLT).

The classifier is a linear map of the last token's state. That token is always the end of text, which is put behind
every text, and between the two texts of a pair.

Shape letters: B texts at once, T tokens, H hidden size, K labels.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from prealign_ds.config import ClassificationSettings
from prealign_ds.corpus.clone import CLONE_LANGUAGE, clone_ids
from prealign_ds.evaluation.labelled import LabelledText, read_labelled
from prealign_ds.randomness import KeyedPermutation, key_of

_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class _Encoded:
    """Labelled text as tokens: the ids of each text, the number of its label, and how many texts were cut."""

    rows: list[np.ndarray]
    labels: np.ndarray
    num_truncated: int

    def batch(self, places: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (B, T) padded on the right with 0, lengths (B,) and labels (B,) of some texts."""
        rows = [torch.from_numpy(self.rows[place]) for place in places]
        lengths = torch.tensor([len(row) for row in rows])
        ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return ids_BT.to(device), lengths.to(device), torch.from_numpy(self.labels[places]).to(device)


class LastTokenClassifier(nn.Module):
    """A decoder and a linear head on the state of each text's last token.

    Unlike transformers' ``AutoModelForSequenceClassification``, it is told the lengths: that one looks for the last
    token that is not the padding id, and so needs an id which never occurs.

    Args:
        body: The decoder without its LM head.
        num_labels: Labels K.
        seed: Decides the head's weights.
    """

    def __init__(self, body: nn.Module, num_labels: int, seed: int):
        super().__init__()
        self.body = body
        config: Any = body.config
        self.head = nn.Linear(config.hidden_size, num_labels, bias=False)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=config.initializer_range, generator=generator)

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits of shape (B, K)."""
        # No mask: padding stands on the right, where a causal model's tokens do not look.
        states_BTH = self.body(input_ids=ids_BT, use_cache=False).last_hidden_state
        return self.head(states_BTH[torch.arange(len(ids_BT), device=ids_BT.device), lengths_B - 1])


class ZeroShotTransfer:
    """Labelled text of one task, read, checked and encoded for one model's tokenizer and positions.

    Args:
        tokenizer: The tokenizer of the model.
        model_config: The model's transformers configuration.
        settings: The ``evaluation.classification`` section.

    Raises:
        ValueError: If a file cannot be used, a label is not trained, or the model has no En-Clone that a test asks for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, model_config: Any, settings: ClassificationSettings):
        self.settings = settings
        self._tokenizer = tokenizer
        positions = model_config.max_position_embeddings
        if settings.max_tokens > positions:
            raise ValueError(
                f"evaluation.classification.max_tokens: {settings.max_tokens}: the model has {positions} positions"
            )
        self._length = settings.max_tokens or positions
        if settings.test.get(CLONE_LANGUAGE) and model_config.vocab_size < 2 * len(tokenizer):
            raise ValueError("evaluation.classification.test.clone: the model's vocabulary has no En-Clone; remove it")
        train = read_labelled(settings.train)
        tests = {language: read_labelled(source) if source else None for language, source in settings.test.items()}
        for test in tests.values():
            if test is not None:
                test.check_labels(train)
        if len(train.texts) < settings.batch_size:
            raise ValueError(
                f"{settings.train}: {len(train.texts)} texts do not fill evaluation.classification.batch_size="
                f"{settings.batch_size}; lower it"
            )
        self.labels = sorted(set(train.labels))
        if len(self.labels) < 2:
            raise ValueError(f"{settings.train}: all texts have the label {self.labels[0]!r}; give two labels or more")
        self._train = self._encode(train)
        self._tests = {
            language: None if test is None else self._encode(test, language == CLONE_LANGUAGE)
            for language, test in tests.items()
        }

    def _encode(self, text: LabelledText, clone: bool = False) -> _Encoded:
        eos = self._tokenizer.eos_token_id
        flat = [part for parts in text.texts for part in parts]
        encoded = iter(self._tokenizer(flat, add_special_tokens=False)["input_ids"])
        rows, num_truncated = [], 0
        for parts in text.texts:
            ids = [next(encoded) for _ in parts]
            room = self._length - len(parts)
            num_truncated += sum(map(len, ids)) > room
            while sum(map(len, ids)) > room:
                max(ids, key=len).pop()
            rows.append(np.array([token for part in ids for token in (*part, eos)], dtype=np.int64))
        if clone:
            clones = clone_ids(self._tokenizer)
            rows = [clones[row] for row in rows]
        numbers = np.array([self.labels.index(label) for label in text.labels])
        return _Encoded(rows, numbers, num_truncated)

    def measure(self, model: PreTrainedModel, accelerator: Accelerator | None = None) -> dict[str, Any]:
        """Fine-tune a copy of ``model`` with each seed, and test it; all processes must call it.

        Args:
            model: A causal language model, its weights whole; it is not changed.
            accelerator: Of the processes that ``accelerate launch`` started; None makes one.

        Returns:
            ``labels``; ``seeds``; ``train``, how many texts there were and how many were cut; and ``accuracy``: for
            each language ``mean``, ``std`` over the seeds (None for one seed), ``per_seed``, ``n`` and ``truncated``;
            None for a language without text.

        Raises:
            ValueError: If the processes cannot share a batch.
        """
        accelerator = accelerator or Accelerator()
        if self.settings.batch_size % accelerator.num_processes:
            raise ValueError(
                f"evaluation.classification.batch_size: {self.settings.batch_size} is no multiple of the "
                f"{accelerator.num_processes} processes"
            )
        tests = {language: test for language, test in self._tests.items() if test is not None}
        found: dict[str, list[float]] = {language: [] for language in tests}
        for seed in self.settings.seeds:
            classifier = self._fine_tuned(model, seed, accelerator)
            for language, test in tests.items():
                found[language].append(_accuracy(classifier, test, self.settings.batch_size, accelerator))
            accelerator.free_memory()
        accuracy: dict[str, Any] = dict.fromkeys(self._tests)
        for language, test in tests.items():
            accuracy[language] = _summary(found[language]) | {"n": len(test.rows), "truncated": test.num_truncated}
        train = {"n": len(self._train.rows), "truncated": self._train.num_truncated}
        return {"labels": self.labels, "seeds": self.settings.seeds, "train": train, "accuracy": accuracy}

    def _fine_tuned(self, model: PreTrainedModel, seed: int, accelerator: Accelerator) -> nn.Module:
        settings = self.settings
        classifier: Any = LastTokenClassifier(copy.deepcopy(model.base_model), len(self.labels), seed)
        groups = [
            {"params": [p for p in classifier.parameters() if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in classifier.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer: Any = torch.optim.AdamW(groups, lr=settings.learning_rate)
        steps = settings.epochs * (len(self._train.rows) // settings.batch_size)
        schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(settings.warmup_share * steps), steps)
        classifier, optimizer = accelerator.prepare(classifier, optimizer)
        classifier.train()
        for places in self._batches(seed):
            own = places[accelerator.process_index :: accelerator.num_processes]
            ids_BT, lengths_B, labels_B = self._train.batch(own, accelerator.device)
            loss = functional.cross_entropy(classifier(ids_BT, lengths_B).float(), labels_B)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(classifier.parameters(), _GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return classifier.eval()

    def _batches(self, seed: int) -> Iterator[np.ndarray]:
        """The global batches: places in the training text, every epoch in an order of its own."""
        size, number = self.settings.batch_size, len(self._train.rows)
        for epoch in range(self.settings.epochs):
            order = KeyedPermutation(number, key_of("classification", seed, epoch))
            for first in range(0, number - size + 1, size):
                yield np.array([order(place) for place in range(first, first + size)])


@torch.no_grad()
def _accuracy(classifier: nn.Module, test: _Encoded, batch_size: int, accelerator: Accelerator) -> float:
    """Share of texts with the right label; the processes share the texts, with as many forwards each."""
    number, world = len(test.rows), accelerator.num_processes
    places = np.arange(accelerator.process_index, math.ceil(number / world) * world, world)
    right = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for first in range(0, len(places), batch_size):
        part = places[first : first + batch_size]
        ids_BT, lengths_B, labels_B = test.batch(np.minimum(part, number - 1), accelerator.device)
        real_B = torch.from_numpy(part < number).to(accelerator.device)
        right += ((classifier(ids_BT, lengths_B).argmax(1) == labels_B) & real_B).sum()
    return int(accelerator.reduce(right, "sum")) / number


def _summary(accuracies: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation."""
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {"mean": statistics.fmean(accuracies), "std": spread, "per_seed": accuracies}
