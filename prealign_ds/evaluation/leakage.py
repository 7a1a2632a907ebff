"""Script leakage: the share of source-language generations that hold another language (paper Table 3).

En-Clone is told by its ids, other languages by the Unicode script of the text. Languages of the source's own script
(German) cannot be told, and are not reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import regex
import torch
from transformers import PreTrainedTokenizerFast

from prealign_ds.codeswitch.switcher import TokenRow
from prealign_ds.config import LeakageSettings
from prealign_ds.corpus.clone import CLONE_LANGUAGE
from prealign_ds.evaluation.compute import Compute
from prealign_ds.evaluation.generation import generate
from prealign_ds.evaluation.intervals import wilson_interval

_SCRIPTS = {
    "ar": "Arabic", "bg": "Cyrillic", "el": "Greek", "fa": "Arabic", "he": "Hebrew", "hi": "Devanagari", "ko": "Hangul",
    "ru": "Cyrillic", "th": "Thai", "uk": "Cyrillic", "zh": "Han",
}  # fmt: skip
_NUM_EXAMPLES = 5


class ScriptLeakage:
    """Texts generated from prompts of held-out source-language text, searched for the other languages.

    The held-out text is cut into as many windows of equal length as there are samples; a prompt begins each of them. A
    text ends at its first end-of-text token. Of a language, only texts count whose prompt does not hold it itself.

    Args:
        held_out: Held-out text by language.
        source_language: The language of the prompts.
        languages: The languages to look for.
        tokenizer: The tokenizer of the model.
        vocabulary: Ids in use.
        positions: Positions of the model.
        settings: The ``evaluation.leakage`` section.
        seed: Decides the draws.

    Raises:
        ValueError: If there is no or too little held-out text, a text does not fit into the model, or no language can
            be told from the source language.
    """

    def __init__(
        self,
        held_out: Mapping[str, TokenRow],
        source_language: str,
        languages: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        vocabulary: int,
        positions: int,
        settings: LeakageSettings,
        seed: int,
    ):
        self.languages = list(languages)
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.settings = settings
        self.seed = seed
        self._special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)
        self._check_lengths(positions)
        if not any(language == CLONE_LANGUAGE or _script(language) for language in languages):
            raise ValueError(
                f"evaluation.leakage: {', '.join(languages) or 'no language'}: nothing that its script tells from "
                f"{source_language}; remove the section"
            )
        if source_language not in held_out:
            raise ValueError(f"evaluation.leakage: data.held_out has no {source_language} text for prompts; add one")
        self.prompts_NP = self._prompts(held_out[source_language])

    def _check_lengths(self, positions: int) -> None:
        prompt, new = self.settings.prompt_tokens, self.settings.new_tokens
        if prompt + new > positions:
            raise ValueError(
                f"evaluation.leakage: prompt_tokens {prompt} + new_tokens {new} do not fit into the model's "
                f"{positions} positions; lower one of them (data.sequence_length decides the positions)"
            )

    def _prompts(self, tokens: TokenRow) -> np.ndarray:
        samples, length = self.settings.samples, self.settings.prompt_tokens
        window = tokens.num_tokens // samples
        if window < length:
            raise ValueError(
                f"evaluation.leakage: {tokens.num_tokens} held-out tokens are too few for samples={samples} prompts of "
                f"prompt_tokens={length}; lower one of them, or hold out more text"
            )
        return np.stack([tokens.read(place * window, length) for place in range(samples)]).astype(np.int64)

    def measure(self, compute: Compute, device: torch.device | str) -> dict[str, Any]:
        """Generate, and count the texts that leak; all ranks must call it, and share the samples.

        Args:
            compute: Reaches the model.
            device: Where to put the batches.

        Returns:
            ``all``: texts that hold any of the languages; and each language, None if it cannot be told: ``share``, its
            ``interval`` (95 %, Wilson), ``leaks`` of ``n`` texts, and ``examples`` of leaks, En-Clone between ⟦ and ⟧.
        """
        settings = self.settings
        drawn_NG = generate(
            compute, self.prompts_NP, settings.new_tokens, self.vocabulary, settings.batch_size, self.seed, device
        )
        texts = [self._until_end(ids) for ids in drawn_NG]
        told = [language for language in self.languages if language == CLONE_LANGUAGE or _script(language)]
        leaks_LN = np.array([[self._holds(ids, language) for ids in texts] for language in told])
        primed_LN = np.array([[self._holds(ids, language) for ids in self.prompts_NP] for language in told])
        found: dict[str, Any] = {"all": self._counted(np.any(leaks_LN, axis=0), np.any(primed_LN, axis=0), texts)}
        found |= dict.fromkeys(self.languages)
        for language, leaks_N, primed_N in zip(told, leaks_LN, primed_LN, strict=True):
            found[language] = self._counted(leaks_N, primed_N, texts)
        return found

    def _until_end(self, ids: np.ndarray) -> np.ndarray:
        ends = np.flatnonzero(ids == self.tokenizer.eos_token_id)
        return ids[: ends[0]] if len(ends) else ids

    def _holds(self, ids: np.ndarray, language: str) -> bool:
        """Whether tokens hold the language."""
        size = len(self.tokenizer)
        if language == CLONE_LANGUAGE:
            return bool(((ids >= size) & ~np.isin(ids - size, self._special)).any())
        text = self.tokenizer.decode(ids[ids < size].tolist())
        return regex.search(rf"\p{{Script={_script(language)}}}", text) is not None

    def _counted(self, leaks_N: np.ndarray, primed_N: np.ndarray, texts: list[np.ndarray]) -> dict[str, Any] | None:
        number, leaking = int((~primed_N).sum()), np.flatnonzero(leaks_N & ~primed_N)
        if not number:
            return None
        return {
            "share": len(leaking) / number,
            "interval": list(wilson_interval(len(leaking), number)),
            "leaks": len(leaking),
            "n": number,
            "examples": [
                {"prompt": self._readable(self.prompts_NP[place]), "text": self._readable(texts[place])}
                for place in leaking[:_NUM_EXAMPLES].tolist()
            ],
        }

    def _readable(self, ids: np.ndarray) -> str:
        """The text of tokens, with clone tokens spelled as their originals between ⟦ and ⟧."""
        size = len(self.tokenizer)
        pieces = []
        for is_clone, run in groupby(ids.tolist(), key=lambda token: token >= size):
            text = str(self.tokenizer.decode([token % size for token in run]))
            pieces.append(f"⟦{text}⟧" if is_clone else text)
        return "".join(pieces)


def _script(language: str) -> str | None:
    """The Unicode script that tells a language from English, if there is one."""
    return _SCRIPTS.get(language.replace("_", "-").split("-")[0])
