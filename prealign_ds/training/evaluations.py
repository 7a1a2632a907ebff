"""What a run measures on its model: during training, and on saved models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prealign_ds.alignment.rows import TableRows
from prealign_ds.evaluation.classification import ZeroShotTransfer
from prealign_ds.evaluation.compute import Compute
from prealign_ds.evaluation.knowledge import KnowledgeResults, ask_period
from prealign_ds.evaluation.leakage import ScriptLeakage
from prealign_ds.evaluation.perplexity import BehindEndOfText, Perplexity, perplexity
from prealign_ds.evaluation.scoring import token_nats
from prealign_ds.evaluation.seen import SeenWords
from prealign_ds.evaluation.similarity import WordSimilarity
from prealign_ds.files import read_json
from prealign_ds.training.run import Run


class Evaluations:
    """The evaluations of a run, built and checked before any compute is spent.

    Args:
        run: The run; its configuration says what is measured, on which text.

    Attributes:
        names: What is measured at every interval, of ``perplexity``, ``similarity`` and ``leakage``.

    Raises:
        ValueError: If text, words or facts for an evaluation are missing.
    """

    def __init__(self, run: Run):
        self._run = run
        settings, data = run.settings.evaluation, run.settings.data
        self._seen: dict[str, SeenWords] = {}
        if run.settings.table is not None:
            translated = [language for language in run.held_out if language in run.table.languages]
            self._seen = {language: SeenWords(run.table, run.tokenizer, language) for language in translated}
        self._similarity = self._leakage = None
        if settings.similarity is not None:
            if run.settings.table is None:
                raise ValueError("evaluation.similarity: needs the words of a table; set table.path, or remove it")
            rows = TableRows(run.table, run.tokenizer)
            self._similarity = WordSimilarity(run.table, rows, settings.similarity, run.settings.seed)
        if settings.leakage is not None:
            languages = dict.fromkeys(corpus.language for corpus in data.corpora + data.held_out)
            self._leakage = ScriptLeakage(
                run.held_out,
                data.source_language,
                [language for language in languages if language != data.source_language],
                run.tokenizer,
                run.vocabulary,
                data.sequence_length,
                settings.leakage,
                run.settings.seed,
            )
        parts = {"perplexity": run.held_out, "similarity": self._similarity, "leakage": self._leakage}
        self.names = [name for name, part in parts.items() if part]

    def ended_periods(self, before: int, after: int) -> list[int]:
        """The periods of knowledge that a step which read the samples ``before .. after`` has ended.

        Where steps and periods do not align, that step has also read the beginning of the next period.
        """
        return list(self._run.knowledge.ended(before, after)) if self._run.knowledge else []

    def measure(self, compute: Compute, names: Sequence[str], periods: Sequence[int] = ()) -> dict[str, Any]:
        """What is found, for JSON, by name; all ranks must call it, and all get the same.

        Args:
            compute: Reaches the model, which is in evaluation mode.
            names: Of :attr:`names`.
            periods: Periods whose facts to ask.
        """
        found: dict[str, Any] = {}
        if "perplexity" in names:
            texts = self._perplexities(compute)
            found["perplexity"] = {language: text.perplexity for language, text in texts.items()}
            found["bits_per_byte"] = {language: text.bits_per_byte for language, text in texts.items()}
            found["by_word"] = {language: text.by_word for language, text in texts.items() if text.by_word}
        for name, part in (("similarity", self._similarity), ("leakage", self._leakage)):
            if name in names and part is not None:
                found[name] = part.measure(compute, self._run.world.device)
        if periods:
            found["knowledge"] = {str(period): self._ask(compute, period) for period in periods}
        return found

    def _perplexities(self, compute: Compute) -> dict[str, Perplexity]:
        settings, run = self._run.settings, self._run
        return {
            language: perplexity(
                compute,
                run.vocabulary,
                BehindEndOfText(tokens, run.tokenizer.eos_token_id),
                run.byte_lengths,
                settings.data.sequence_length,
                settings.evaluation.batch_size,
                run.world.device,
                settings.evaluation.max_tokens,
                self._seen.get(language),
            )
            for language, tokens in run.held_out.items()
        }

    def _ask(self, compute: Compute, period: int) -> KnowledgeResults:
        run = self._run
        assert run.knowledge is not None, "a period has ended"
        batch_tokens = run.settings.evaluation.batch_size * run.settings.data.sequence_length
        return ask_period(run.knowledge, period, compute, run.vocabulary, batch_tokens, run.world.device)

    @torch.no_grad()
    def try_largest_batch(self, compute: Compute) -> None:
        """Compute a batch of held-out text as large as any, to find out whether it fits in memory."""
        settings = self._run.settings
        shape = settings.evaluation.batch_size, settings.data.sequence_length
        rows = torch.zeros(shape, dtype=torch.int64, device=self._run.world.device)
        compute(partial(token_nats, inputs_BS=rows, targets_BS=rows, vocabulary=self._run.vocabulary))


def evaluate_saved(run: Run, folder: Path, only: Sequence[str] | None, poll: Callable[[], None]) -> dict[str, Any]:
    """The evaluations of a saved model or a complete checkpoint, for JSON; all ranks must call it.

    Args:
        run: The run that the model belongs to.
        folder: The model's folder.
        only: What to measure: ``knowledge`` (of the last period that had ended), ``classification`` or a name of
            :attr:`Evaluations.names`; None is all that the configuration holds.
        poll: Called before each batch.

    Raises:
        ValueError: If something to measure is not configured, before anything is computed.
    """
    evaluations, classification = Evaluations(run), run.settings.evaluation.classification
    periods = evaluations.ended_periods(0, _tokens_of(run, folder) // run.settings.data.sequence_length)[-1:]
    known = [*evaluations.names, *(["knowledge"] if periods else []), *(["classification"] if classification else [])]
    for name in only or []:
        if name not in known:
            raise ValueError(
                f"{name}: nothing to measure it with; this run has {', '.join(known) or 'nothing'}: "
                "set data.held_out, knowledge or evaluation.* (a dotted.key=value on the command line will do)"
            )
    names = list(only or known)
    transfer = None
    if classification is not None and "classification" in names:
        transfer = ZeroShotTransfer(run.tokenizer, run.model_config, classification)
    model = run.saved_model(folder)

    def compute(task: Callable[[PreTrainedModel], Any]) -> Any:
        poll()
        return task(model)

    found = evaluations.measure(compute, names, periods if "knowledge" in names else [])
    if transfer is not None:
        found["classification"] = transfer.measure(model)
    return found


def _tokens_of(run: Run, folder: Path) -> int:
    """LM tokens that a saved model has read."""
    for name in ("training.json", "manifest.json"):
        if (folder / name).is_file():
            return int(read_json(folder / name)["tokens"])
    return run.settings.lm_tokens
