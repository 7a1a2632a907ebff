"""The evaluations of a run as tasks of lm-evaluation-harness, which finds the same numbers on the exported model.

The harness cuts a document into windows as long as the model has positions, behind one end-of-text token; each window
but the first begins with the last token of the one before, and the last one reaches back to full length. That is what
:func:`prealign_ds.evaluation.perplexity.perplexity` does with a held-out text, so that this text is one document here,
its own documents joined by the end-of-text token's name. Questions are asked behind an end-of-text token by both.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from prealign_ds.corpus.clone import CLONE_LANGUAGE
from prealign_ds.exporting import harness_task
from prealign_ds.exporting.tokenizer import CLONE_FOLDER
from prealign_ds.files import atomic_folder
from prealign_ds.training.run import Run

TAGS = {False: "prealign", True: "prealign_clone"}
"""What names all tasks, by whether text is En-Clone."""

_HEAD = """\
task: {name}
tag: {tag}
custom_dataset: !function task.documents
dataset_kwargs:
  file: {name}.jsonl
test_split: test
doc_to_text: ""
num_fewshot: 0
metadata:
  version: 1.0
"""
_HELD_OUT = """\
output_type: loglikelihood_rolling
doc_to_target: text
process_results: !function task.held_out
metric_list:
  - {metric: perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
_QUESTIONS = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def write_tasks(run: Run, output: Path) -> dict[str, str]:
    """Write a folder for the harness's ``--include_path``, whole or not at all.

    It holds perplexity on each held-out text, and the questions of the last period of knowledge that has ended, a task
    for each direction.

    Args:
        run: The run; a task says nothing of its model.
        output: The folder to write; it must not exist.

    Returns:
        What each task measures, by its name.

    Raises:
        ValueError: If ``output`` exists, the run has neither held-out text nor knowledge, or a tokenizer does not give
            a text's tokens back.
    """
    if output.exists() or output.is_symlink():
        raise ValueError(f"--output {output}: exists; choose another name, or remove it")
    if not run.held_out and run.knowledge is None:
        raise ValueError(f"{run.dir}: neither data.held_out nor knowledge; append data.held_out=[...] to have a task")
    said = {}
    with atomic_folder(output) as folder:
        for language in run.held_out:
            document = _held_out(run, language)
            name = f"prealign_text_{language}"
            _write(folder, name, language, _HELD_OUT, [document])
            said[name] = f"{document['tokens']:,} tokens of {language}"
        for direction, questions in _questions(run).items():
            told, asked = direction.split("->")
            name = f"prealign_facts_{told}_{asked}"
            _write(folder, name, asked, _QUESTIONS, questions)
            said[name] = f"{len(questions):,} facts told in {told}, asked in {asked}"
        shutil.copy(harness_task.__file__, folder / "task.py")
    return said


def commands(run: Run, output: Path, model: str = "EXPORTED") -> list[str]:
    """How to run the tasks of a folder on an exported model."""
    tokenizer, lines = run.tokenizer, []
    options = ""
    if tokenizer.bos_token_id not in (None, tokenizer.eos_token_id):
        options += f",prefix_token_id={tokenizer.eos_token_id}"  # the harness would take the begin-of-text token
    if tokenizer.encode("a") != tokenizer.encode("a", add_special_tokens=False):
        options += ",add_bos_token=False"
    for clone, tag in TAGS.items():
        if any(f"\ntag: {tag}\n" in file.read_text(encoding="utf-8") for file in output.glob("*.yaml")):
            other = f",tokenizer={model}/{CLONE_FOLDER}" if clone else ""
            arguments = f"pretrained={model}{other}{options}"
            lines.append(f"lm_eval --model hf --model_args {arguments} --tasks {tag} --include_path {output}")
    return lines


def _write(folder: Path, name: str, language: str, kind: str, documents: list[dict[str, Any]]) -> None:
    head = _HEAD.format(name=name, tag=TAGS[language == CLONE_LANGUAGE])
    (folder / f"{name}.yaml").write_text(head + kind, encoding="utf-8")
    lines = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _held_out(run: Run, language: str) -> dict[str, Any]:
    """A held-out text as the harness reads it: ``text``, and its number of ``tokens``, ``words`` and ``bytes``.

    Of ``evaluation.max_tokens`` tokens the last ones may be missing, where a cut word has other tokens.

    Raises:
        ValueError: If the text has other tokens when it is read back.
    """
    corpus, tokenizer = run.held_out[language], run.tokenizer
    length = min(corpus.num_tokens, run.settings.evaluation.max_tokens or corpus.num_tokens)
    ids = corpus.read(0, length).astype(np.int64)
    ids = np.where(ids >= len(tokenizer), ids - len(tokenizer), ids)  # En-Clone is read by a tokenizer of its own
    pieces = [piece.tolist() for piece in np.split(ids, (ids == tokenizer.eos_token_id).nonzero()[0] + 1)]
    texts = [_decode(tokenizer, piece) for piece in pieces]
    if length < corpus.num_tokens:
        while pieces[-1] and _encode(tokenizer, texts[-1]) != pieces[-1]:
            pieces[-1] = pieces[-1][:-1]
            texts[-1] = _decode(tokenizer, pieces[-1])
    text, expected = "".join(texts), [number for piece in pieces for number in piece]
    found = _encode(tokenizer, text)
    if found != expected:
        place = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
        raise ValueError(
            f"held-out text of {language}: token {place} is another one when the text is read back "
            f"({_decode(tokenizer, expected[max(0, place - 5) : place + 5])!r}); lower evaluation.max_tokens to "
            f"{place}, or take another text"
        )
    num_bytes = int(run.byte_lengths[expected].sum())
    return {"text": text, "tokens": len(expected), "words": len(text.split()), "bytes": num_bytes}


def _questions(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The facts of the last period that has ended, by direction; the harness takes a tie for the first choice.

    The true statement is therefore the last: a tie is no knowledge.
    """
    if run.knowledge is None:
        return {}
    plan, tokenizer = run.knowledge, run.tokenizer
    period = plan.ended(0, run.settings.lm_tokens // run.settings.data.sequence_length)[-1]
    found: dict[str, list[dict[str, Any]]] = {str(direction): [] for direction in plan.directions}
    for fact, statements in zip(plan.facts(period), plan.statements(period), strict=True):
        rows = [np.where(row >= len(tokenizer), row - len(tokenizer), row).tolist() for row in statements]
        texts = [_decode(tokenizer, row) for row in rows]
        if [_encode(tokenizer, text) for text in texts] != rows:
            raise ValueError(f"statement {texts[0]!r}: has other tokens when it is read back; use another tokenizer")
        found[str(fact.direction)].append(
            {"choices": texts[::-1], "answer": len(texts) - 1, "frequency": fact.frequency}
        )
    return found


def _decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
