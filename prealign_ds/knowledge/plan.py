"""Which facts are told when, how often and in which language: a pure function of the seed and the settings.

The stream of samples is cut into periods of a fixed number of samples, counted from ``knowledge.start_tokens`` in
absolute tokens of the run. Stage 1 reads the first samples of the same stream: a period may lie in either stage, and
Joint Training, which has no stage 1, is told the same facts at the same samples. To have periods in stage 2 alone,
start with the tokens of stage 1. Each period has facts of its own, for each direction (told in one language, asked in
another) and frequency; their sentences take the place of samples of that period.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from prealign_ds.config import KnowledgeSettings
from prealign_ds.corpus.clone import CLONE_LANGUAGE, clone_ids
from prealign_ds.files import digest_of, sha256_file
from prealign_ds.knowledge.directions import Direction
from prealign_ds.knowledge.entities import Name, names, spell
from prealign_ds.knowledge.packing import PackedDocuments
from prealign_ds.knowledge.relations import SHIPPED, load_templates
from prealign_ds.randomness import KeyedPermutation, key_of, mix

CHOICES = 4
"""Statements among which the model chooses (paper section 4.2)."""

_NAMES_PER_FACT = 16  # range of names that a period may use: objects are drawn until enough have as many tokens
_LARGEST_SHARE = 0.5  # of a period's samples
_PERIODS_KEPT = 2  # in memory: a loader is at the border of two at most
_ANYONE: Name = ("d", "a", "", "n", "i", "l", "o", "")  # a subject to measure sentences with


class Fact(NamedTuple):
    """A fact, and the objects of other facts that it must be told apart from.

    Attributes:
        direction: The languages in which it is told and asked.
        frequency: How often it is told.
        relation: Its relation.
        subject: Name of the subject.
        objects: Names of the true object, then of the distractors: the true objects of three other facts of the same
            relation, period, direction and frequency. With each of them a sentence has the same number of tokens.
    """

    direction: Direction
    frequency: int
    relation: str
    subject: Name
    objects: tuple[Name, ...]


class Placed(NamedTuple):
    """Where the text of a knowledge sample stands.

    Attributes:
        language: Language of the text.
        tokens: The text of its period in this language.
        start: Offset of the sample's first token.
        key: What code-switching is drawn with.
    """

    language: str
    tokens: PackedDocuments
    start: int
    key: int


@dataclass
class _Period:
    facts: list[Fact]
    rows: dict[str, PackedDocuments]
    order: KeyedPermutation

    @property
    def num_samples(self) -> int:
        return sum(row.num_samples for row in self.rows.values())


class KnowledgePlan:
    """The facts of every period, and the samples that tell them; memory does not grow with the run.

    Args:
        settings: The ``knowledge`` section.
        directions: From :func:`prealign_ds.knowledge.directions.directions_of`.
        source_language: Language that En-Clone is the clone of.
        sequence_length: Tokens S in a sample.
        tokenizer: The tokenizer.
        seed: Decides names, facts, sentences and places.
        known: Words that are no names, lower-cased: those of the alignment table and the corpus.

    Raises:
        ValueError: If the templates are not in order, or ``period_tokens`` or ``start_tokens`` are no whole samples.
    """

    def __init__(
        self,
        settings: KnowledgeSettings,
        directions: Sequence[Direction],
        source_language: str,
        sequence_length: int,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        known: Collection[str] = frozenset(),
    ):
        self.settings, self.directions, self.source_language = settings, list(directions), source_language
        of_their_own = settings.directions if isinstance(settings.directions, dict) else {}
        self._num_facts = {d: of_their_own.get(str(d), settings.facts) for d in self.directions}  # a frequency each
        for key in ("period_tokens", "start_tokens"):
            if (tokens := getattr(settings, key)) % sequence_length:
                near = max(1, round(tokens / sequence_length)) * sequence_length
                raise ValueError(
                    f"knowledge.{key}: {tokens} is not a multiple of data.sequence_length {sequence_length}; the "
                    f"nearest is {near}"
                )
        self.period_samples = settings.period_tokens // sequence_length
        self.first_sample = settings.start_tokens // sequence_length
        self.eos = tokenizer.eos_token_id
        self._length, self._seed, self._known = sequence_length, seed, known
        self._encode = tokenizer.backend_tokenizer.encode_batch_fast
        self._clone_ids = clone_ids(tokenizer)
        languages = [language for direction in directions for language in direction]
        self._templates = load_templates(
            settings.templates or SHIPPED, [self._written_as(language) for language in languages]
        )
        self._built: dict[int, _Period] = {}

    def _written_as(self, language: str) -> str:
        return self.source_language if language == CLONE_LANGUAGE else language

    def locate(self, sample: int) -> Placed | None:
        """Where the text of sample ``sample`` of the stream stands, or None for a sample that tells no facts."""
        number, offset = divmod(sample - self.first_sample, self.period_samples)
        if number < 0:
            return None
        period = self._period(number)
        place = period.order(offset)
        for language, row in period.rows.items():
            if place < row.num_samples:
                return Placed(language, row, place * self._length, self._key("switch", number))
            place -= row.num_samples
        return None

    def ended(self, before: int, after: int) -> range:
        """The periods that end when a run that has read ``before`` samples has read ``after``."""
        first, last = (max(0, (sample - self.first_sample) // self.period_samples) for sample in (before, after))
        return range(first, last)

    def facts(self, period: int) -> list[Fact]:
        """The facts of a period."""
        return self._period(period).facts

    def statements(self, period: int) -> list[list[np.ndarray]]:
        """The facts of a period as they are asked: of each, the tokens with the true object, then with the others."""
        facts = self.facts(period)
        key = self._key("ask", period)
        rows = []
        for number, fact in enumerate(facts):
            templates = self._sentences(fact.relation, fact.direction.asked)
            template = templates[mix(key + number) % len(templates)]
            texts = [self._fill(template, fact.subject, name, fact.direction.asked) for name in fact.objects]
            rows.append(self._tokens(texts, fact.direction.asked))
        return rows

    def share(self, period: int) -> float:
        """Share of the samples of a period that tell facts."""
        return self._period(period).num_samples / self.period_samples

    def check(self, samples: int) -> None:
        """Build the first and the last period that begin within a run of ``samples`` samples, and ask their facts.

        Raises:
            ValueError: If no period ends within the run, or one does not fit into half of its samples, or there are
                not enough names.
        """
        if not self.ended(0, samples):
            raise ValueError(
                f"knowledge: the first period ends after {self.settings.start_tokens + self.settings.period_tokens} "
                f"tokens, the run has {samples * self._length}; lower knowledge.period_tokens or start_tokens"
            )
        for number in {0, (samples - 1 - self.first_sample) // self.period_samples}:
            if (share := self.share(number)) > _LARGEST_SHARE:
                raise ValueError(
                    f"knowledge: the sentences of a period are {share:.0%} of its {self.period_samples} samples, at "
                    f"most {_LARGEST_SHARE:.0%} may be; raise knowledge.period_tokens ({self.settings.period_tokens}), "
                    f"or lower knowledge.facts ({sum(self._num_facts.values())} in all directions), frequencies or "
                    "directions"
                )
            longest = max(len(choices[0]) for choices in self.statements(number))
            if longest > self._length:
                raise ValueError(f"knowledge: a statement has {longest} tokens; raise data.sequence_length")

    def digest(self) -> str:
        """A hash of all that decides the facts and their places, but for the known words of the alignment table."""
        settings = self.settings.model_dump(mode="json", exclude={"templates", "words"})
        words = [sha256_file(path) for path in self.settings.words]
        return digest_of([settings, self._templates, [str(d) for d in self.directions], words, self._seed])

    def _period(self, number: int) -> _Period:
        built = self._built.get(number)
        if built is None:
            built = self._build(number)
            # Replaced and not changed: threads that prepare batches share it.
            self._built = dict([*self._built.items(), (number, built)][-_PERIODS_KEPT:])
        return built

    def _build(self, number: int) -> _Period:
        facts = list(self._draw_facts(number))
        rows = {}
        for language in dict.fromkeys(direction.told for direction in self.directions):
            told = [fact for fact in facts if fact.direction.told == language]
            documents = self._tell(told, language, self._key("tell", number, language))
            rows[language] = PackedDocuments(documents, self._length, self.eos)
        return _Period(facts, rows, KeyedPermutation(self.period_samples, self._key("place", number)))

    def _key(self, purpose: str, period: int, *more: int | str) -> int:
        return key_of("knowledge", purpose, self._seed, period, *more)

    def _draw_facts(self, period: int) -> Iterator[Fact]:
        """Groups of four facts of one relation: the distractors of each are the objects of the other three."""
        settings = self.settings
        number = sum(self._num_facts.values()) * len(settings.frequencies)
        fresh = self._names(period * number * _NAMES_PER_FACT, (period + 1) * number * _NAMES_PER_FACT)
        relations = sorted(self._templates[self._written_as(self.directions[0].told)])
        spare: list[Name] = []
        for place, direction in enumerate(self.directions):
            for frequency in settings.frequencies:
                order = KeyedPermutation(len(relations), self._key("relations", period, place, frequency))
                for group in range(self._num_facts[direction] // CHOICES):
                    relation = relations[order(group % len(relations))]
                    objects = self._alike(fresh, spare, relation, direction)
                    subjects = [spare.pop() if spare else next(fresh) for _ in objects]
                    for turn, subject in enumerate(subjects):
                        yield Fact(direction, frequency, relation, subject, (*objects[turn:], *objects[:turn]))

    def _names(self, first: int, end: int) -> Iterator[Name]:
        languages = {language for direction in self.directions for language in direction}
        for name in names(self._seed, first, end):
            if not any(self._spell(name, language).lower() in self._known for language in languages):
                yield name
        raise ValueError("knowledge: too few names with as many tokens as others; use fewer directions in one run")

    def _alike(self, fresh: Iterator[Name], spare: list[Name], relation: str, direction: Direction) -> list[Name]:
        """Four names that make any sentence of the relation equally long, told and asked; others become ``spare``."""
        alike: dict[tuple[int, ...], list[Name]] = defaultdict(list)
        for name in fresh:
            texts = [
                self._fill(template, _ANYONE, name, language)
                for language in direction
                for template in self._sentences(relation, language)
            ]
            group = alike[tuple(len(tokens) for tokens in self._tokens(texts, self.source_language))]
            group.append(name)
            if len(group) == CHOICES:
                spare += [other for others in alike.values() if others is not group for other in others]
                return group
        raise AssertionError("names end with an error")

    def _tell(self, facts: list[Fact], language: str, key: int) -> list[np.ndarray]:
        """The sentences that tell ``facts``, each as often as its frequency says, in the order of the documents."""
        sentences = [
            [self._fill(t, fact.subject, fact.objects[0], language) for t in self._sentences(fact.relation, language)]
            for fact in facts
        ]
        texts = {text: None for variants in sentences for text in variants}
        tokens = dict(zip(texts, self._tokens(list(texts), language), strict=True))
        told = [
            tokens[variants[mix(mix(key + place) + turn) % len(variants)]]
            for place, (fact, variants) in enumerate(zip(facts, sentences, strict=True))
            for turn in range(fact.frequency)
        ]
        order = KeyedPermutation(len(told), key)
        return [told[order(place)] for place in range(len(told))]

    def _sentences(self, relation: str, language: str) -> list[str]:
        return self._templates[self._written_as(language)][relation]

    def _spell(self, name: Name, language: str) -> str:
        return spell(name, self._written_as(language), self.settings.script)

    def _fill(self, template: str, subject: Name, object: Name, language: str) -> str:
        return template.format(subject=self._spell(subject, language), object=self._spell(object, language))

    def _tokens(self, texts: list[str], language: str) -> list[np.ndarray]:
        rows = [np.array(encoding.ids) for encoding in self._encode(texts, add_special_tokens=False)]
        return [self._clone_ids[row] for row in rows] if language == CLONE_LANGUAGE else rows
