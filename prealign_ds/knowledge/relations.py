"""Relations of Wikidata as sentences with two slots, in every language that facts are told or asked in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

SHIPPED = Path(__file__).parent / "templates"
"""Folder with the templates of this package: LANGUAGE.yaml, relation to list of sentences."""

_SLOT = re.compile(r"\{[^{}]*\}|[{}]")
_SLOTS = ["{object}", "{subject}"]

Templates = dict[str, list[str]]
"""The sentences of each relation in one language."""


def load_templates(folder: Path, languages: Iterable[str]) -> dict[str, Templates]:
    """The templates of some languages, each from ``folder/LANGUAGE.yaml``, with the same relations in all of them.

    Raises:
        ValueError: If a file is missing or is no mapping of relations to sentences, if a sentence does not hold
            ``{subject}`` and ``{object}`` once each and no other slot, or a language lacks a relation: all of these.
    """
    problems: list[str] = []
    loaded = {language: _load(folder / f"{language}.yaml", problems) for language in dict.fromkeys(languages)}
    relations = {relation for templates in loaded.values() for relation in templates}
    for language, templates in loaded.items():
        if missing := sorted(relations - templates.keys()):
            problems.append(f"{folder / language}.yaml: no sentences for {', '.join(missing)}; add them")
    if problems:
        raise ValueError("knowledge.templates:\n" + "\n".join(f"  {problem}" for problem in problems))
    return loaded


def _load(path: Path, problems: list[str]) -> Templates:
    if not path.is_file():
        there = sorted(file.stem for file in path.parent.glob("*.yaml"))
        problems.append(f"{path}: no such file; write one, or use the languages that are there: {there}")
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"{path}: not valid YAML: {error}")
        return {}
    if not isinstance(found, dict) or not all(isinstance(item, list) and item for item in found.values()):
        problems.append(f"{path}: write it as a mapping from each relation to a list of sentences")
        return {}
    for relation, sentences in found.items():
        for number, sentence in enumerate(sentences, 1):
            slots = sorted(_SLOT.findall(str(sentence)))
            if slots != _SLOTS or not isinstance(sentence, str):
                problems.append(
                    f"{path}: {relation}, sentence {number} ({sentence!r}): has the slots {slots}; it needs "
                    "{subject} and {object}, each once, and no other"
                )
    return {str(relation): sentences for relation, sentences in found.items()}
