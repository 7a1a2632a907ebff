"""Translations from a chat model, in place of a dictionary or beside one (the paper asked GPT-4, section 3.1).

Words go out in batches; each answer is checked word by word, and is on disk before its thread asks again. What was
answered is never asked again. What an endpoint answers badly, slowly or not at all is asked in smaller batches, and is
listed as failed in the end.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from prealign_ds.alignment.counting import WordCount
from prealign_ds.alignment.endpoint import ChatSettings, Endpoint, Retry
from prealign_ds.alignment.sources import Pair, clean
from prealign_ds.files import digest_of
from prealign_ds.words import is_alphabetic

_PROMPT = (
    "For each word of this list, in the language {source}, give its common translations into {languages} (ISO codes) "
    "as a dictionary would: the most frequent sense first, at most {senses} in each language, in the form of the "
    "dictionary, without explanations. Give an empty list where a word has none, as most names. Answer with JSON: "
    '{{"translations": [{{"word": "...", {shape}}}]}}\n\nWords: {words}'
)
_TOKENS_OF_PROMPT = 120
_TOKENS_OF_SENSE = 4
_HOPELESS = 20
"""Requests in a row that fail, for each thread, before the endpoint is given up."""


class Estimate(NamedTuple):
    """What asking will take, before it is done: requests, tokens (about), and their cost."""

    words: int
    requests: int
    prompt_tokens: int
    answer_tokens: int
    cost: float

    def __str__(self) -> str:
        """One line for people."""
        cost = f", about {self.cost:,.2f} at the price given" if self.cost else ""
        return (
            f"{self.words:,} words in {self.requests:,} requests: about {self.prompt_tokens:,} prompt tokens and "
            f"{self.answer_tokens:,} answered ones{cost}"
        )


@dataclass
class Answers:
    """What came of asking.

    Attributes:
        pairs: Translations of all words asked about, now or before; the best of a word first.
        failed: Words that could not be had, with the last reason.
        remarks: What was wrong with answers, counted: words and languages that were not asked about, retries by kind.
        cost: Of this call, as the endpoint counted its tokens.
    """

    pairs: list[Pair] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    remarks: Counter[str] = field(default_factory=Counter)
    cost: float = 0.0


class AnswerCache:
    """Answers on disk, a JSON line for each word and language, appended as they come.

    A line that a kill cut short is dropped at the next start. Other lines that are not answers are errors.

    Args:
        path: The file; it is made if it is not there.
        settings: Answers under other settings stay in the file and are not used.

    Raises:
        ValueError: If a line is not an answer.
    """

    def __init__(self, path: str | Path, settings: ChatSettings):
        self._path, self._digest = Path(path), digest_of([settings.model, settings.senses, _PROMPT])[:16]
        self._lock = threading.Lock()
        self.known: dict[tuple[str, str], list[str]] = {}
        if self._path.exists():
            self._read()
        self._file = self._path.open("ab")

    def _read(self) -> None:
        data = self._path.read_bytes()
        if not data.endswith(b"\n"):
            data = data[: data.rfind(b"\n") + 1]
            with self._path.open("r+b") as file:
                file.truncate(len(data))
        for number, line in enumerate(data.splitlines(), 1):
            try:
                digest, word, language, texts = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{self._path}:{number}: not an answer ({error}); give another file, or delete it"
                ) from error
            if digest == self._digest:
                self.known[word, language] = texts

    def add(self, answers: Mapping[tuple[str, str], list[str]]) -> None:
        """Keep answers; they are on disk when this returns."""
        lines = [json.dumps([self._digest, *key, texts], ensure_ascii=False) + "\n" for key, texts in answers.items()]
        with self._lock:
            self.known |= answers
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Batch(NamedTuple):
    """Words that are asked about together, all in the same languages."""

    words: tuple[str, ...]
    languages: tuple[str, ...]


def words_without(
    counts: Mapping[str, WordCount],
    pairs: Iterable[Pair],
    languages: Sequence[str],
    minimum_count: int = 1,
    excluded: Collection[str] = (),
) -> dict[str, tuple[str, ...]]:
    """The words of a corpus that lack translations, each with the languages that it lacks, the most frequent first.

    Words are made of letters, and asked about in lower case where the corpus has them so.

    Args:
        counts: Word counts of the training text.
        pairs: What dictionaries give.
        languages: Target languages.
        minimum_count: Words that occur less often, in all their forms together, are left out.
        excluded: Words not to ask about, in lower case.
    """
    there: dict[str, set[str]] = {}
    for pair in pairs:
        there.setdefault(pair.word.lower(), set()).add(pair.language)
    totals: Counter[str] = Counter()
    forms: dict[str, str] = {}
    for word, (count, _) in counts.items():  # the most frequent form of a word comes first
        if is_alphabetic(word):
            lower = word.lower()
            totals[lower] += count
            forms[lower] = lower if lower in counts else forms.get(lower, word)
    found = {}
    for lower, total in totals.most_common():
        lacking = tuple(language for language in languages if language not in there.get(lower, ()))
        if lacking and total >= minimum_count and lower not in excluded:
            found[forms[lower]] = lacking
    return found


def batches_of(
    wanted: Mapping[str, Sequence[str]], settings: ChatSettings, known: Iterable[tuple[str, str]] = ()
) -> list[_Batch]:
    """What is to be asked: words that lack the same languages together, in their order.

    Args:
        wanted: For each word the languages in which it needs translations.
        settings: Decide the size of a batch.
        known: (word, language) that are answered.
    """
    done = set(known)
    groups: dict[tuple[str, ...], list[str]] = {}
    for word, languages in wanted.items():
        if missing := tuple(language for language in languages if (word, language) not in done):
            groups.setdefault(missing, []).append(word)
    size = settings.words_per_request
    return [part for languages, words in groups.items() for part in _shared_out(words, _Batch((), languages), size)]


def estimate(batches: Sequence[_Batch], settings: ChatSettings) -> Estimate:
    """What asking these batches will take, at 1.5 tokens a word and 4 a translation."""
    words = sum(len(batch.words) for batch in batches)
    prompt = sum(_TOKENS_OF_PROMPT + 2 * len(batch.words) for batch in batches)
    answer = sum(len(b.words) * (8 + len(b.languages) * (3 + _TOKENS_OF_SENSE * settings.senses)) for b in batches)
    cost = (prompt * settings.price[0] + answer * settings.price[1]) / 1e6
    return Estimate(words, len(batches), prompt, answer, cost)


def ask(
    wanted: Mapping[str, Sequence[str]], source_language: str, settings: ChatSettings, cache: AnswerCache
) -> Answers:
    """Ask about all that the cache does not know; an interruption loses nothing that was answered.

    Args:
        wanted: From :func:`words_without`.
        source_language: Of the words.
        settings: The endpoint.
        cache: Keeps the answers.

    Raises:
        ValueError: If the endpoint refuses the key or the model, answers nothing at all, or the cost reaches its limit.
    """
    answers = Answers()
    batches = batches_of(wanted, settings, cache.known)
    expected = estimate(batches, settings)
    if settings.most_cost and expected.cost > settings.most_cost:
        raise ValueError(
            f"chat: {expected}, which is more than most_cost ({settings.most_cost:,.2f}); raise it, or ask about fewer "
            "words (a higher --min-count)"
        )
    _Asking(settings, source_language, cache, answers).run(batches)
    source = f"chat:{settings.model}"
    for word, languages in wanted.items():
        for language in languages:
            answers.pairs += [
                Pair(word, language, text, source) for text in cache.known.get((word, language), [])[: settings.senses]
            ]
    return answers


class _Asking:
    """One call of :func:`ask`: threads that ask, and what they share."""

    def __init__(self, settings: ChatSettings, source_language: str, cache: AnswerCache, answers: Answers):
        self._settings, self._cache, self._answers = settings, cache, answers
        self._source_language = source_language
        self._endpoint = Endpoint(settings)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failures = 0

    def run(self, batches: Sequence[_Batch]) -> None:
        """Ask all batches, and the halves of those that fail."""
        waiting = deque(batches)
        under_way: dict[Future[list[_Batch]], _Batch] = {}
        total = sum(len(batch.words) for batch in batches)
        bar = tqdm(total=total, unit="words", desc="chat", disable=None)
        with bar, ThreadPoolExecutor(self._settings.parallel, "chat") as threads:
            try:
                while waiting or under_way:
                    while waiting and len(under_way) < self._settings.parallel:
                        batch = waiting.popleft()
                        under_way[threads.submit(self._try, batch)] = batch
                    for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                        batch = under_way.pop(done)
                        again = done.result()
                        waiting.extendleft(reversed(again))
                        bar.update(len(batch.words) - sum(len(part.words) for part in again))
            finally:  # whatever ends this: no thread asks again, and answers on their way are still kept
                self._stop.set()

    def _try(self, batch: _Batch) -> list[_Batch]:
        """Ask a batch; returns what has to be asked again, in smaller batches."""
        reason = "no answer"
        for attempt in range(self._settings.attempts):
            if self._stop.is_set():
                return []
            try:
                found, usage = self._endpoint.ask(self._prompt(batch), batch.languages)
                missing = self._keep(batch, found, usage)
                if len(missing) < len(batch.words):
                    return _shared_out(missing, batch, len(batch.words) // 2)
                raise Retry("the answer leaves all words out", delay=0.0)
            except Retry as problem:
                reason = str(problem)
                self._count_failure(problem)
                if attempt + 1 < self._settings.attempts:
                    self._stop.wait(_back_off(attempt) if problem.delay is None else problem.delay)
        if len(batch.words) > 1:
            return _shared_out(batch.words, batch, -(-len(batch.words) // 2))
        with self._lock:
            self._answers.failed[batch.words[0]] = reason
        return []

    def _prompt(self, batch: _Batch) -> str:
        return _PROMPT.format(
            source=self._source_language,
            languages=", ".join(batch.languages),
            senses=self._settings.senses,
            shape=", ".join(f'"{language}": ["..."]' for language in batch.languages),
            words=json.dumps(batch.words, ensure_ascii=False),
        )

    def _keep(self, batch: _Batch, found: Any, usage: tuple[int, int]) -> tuple[str, ...]:
        """Put an answer into the cache; returns the words that it leaves out."""
        remarks: Counter[str] = Counter()
        answered = checked(found, batch.words, batch.languages, remarks)
        self._cache.add(answered)
        with self._lock:
            self._failures = 0 if answered else self._failures
            self._answers.remarks += remarks
            self._answers.cost += sum(n * price for n, price in zip(usage, self._settings.price, strict=True)) / 1e6
            spent = self._answers.cost
        if self._settings.most_cost and spent >= self._settings.most_cost:
            self._stop.set()
            raise ValueError(
                f"chat: {spent:,.2f} were spent, the limit; all answers are kept, and the same command with a higher "
                "limit goes on from them"
            )
        return tuple(word for word in batch.words if (word, batch.languages[0]) not in answered)

    def _count_failure(self, problem: Retry) -> None:
        settings = self._settings
        with self._lock:
            self._answers.remarks[f"retried: {problem.kind}"] += 1
            self._failures += 1
            if self._failures >= _HOPELESS * settings.parallel:
                self._stop.set()
                raise ValueError(
                    f"chat: {settings.host} has answered none of the last {self._failures} requests (now: {problem}); "
                    "check the url and the model, or raise the timeout; what was answered is kept"
                )


def _shared_out(words: Sequence[str], batch: _Batch, size: int) -> list[_Batch]:
    """Batches of at most ``size`` words, in the languages of ``batch``."""
    size = max(1, size)
    return [_Batch(tuple(words[start : start + size]), batch.languages) for start in range(0, len(words), size)]


def checked(
    found: Any, words: Sequence[str], languages: Sequence[str], remarks: Counter[str]
) -> dict[tuple[str, str], list[str]]:
    """The usable part of an answer: for each word that it has, the translations in each language asked about.

    Args:
        found: The JSON value that the model wrote.
        words: What was asked about.
        languages: In which languages.
        remarks: Counts what was not asked for, or is not text.
    """
    entries = found.get("translations") if isinstance(found, dict) else found
    if isinstance(entries, dict):  # {"word": {"de": [...]}}
        entries = [{"word": word, **value} for word, value in entries.items() if isinstance(value, dict)]
    answered: dict[tuple[str, str], list[str]] = {}
    asked = {word.casefold(): word for word in words}
    for entry in entries if isinstance(entries, list) else ():
        word = asked.get(str(entry.get("word", "")).strip().casefold()) if isinstance(entry, dict) else None
        if word is None:
            remarks["not asked about: word"] += 1
            continue
        values = entry.get("translations", entry)  # some models nest them once more
        values = values if isinstance(values, dict) else entry
        remarks["not asked about: language"] += len(values.keys() - {"word", "translations", *languages})
        for language in languages:
            texts = values.get(language, [])
            texts = [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else [None]
            kept = [clean(text) for text in texts if isinstance(text, str)]
            remarks["no text"] += len(texts) - len(kept)
            answered[word, language] = list(dict.fromkeys(filter(None, kept)))
    return answered


def _back_off(attempt: int) -> float:
    """Seconds to wait after a failure: 1, 2, 4 ... up to 60, and up to as much again, so that threads part."""
    return min(60.0, 2.0**attempt) * (1 + random.random()) / 2
