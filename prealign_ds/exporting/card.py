"""The model card: what the model is, what it was trained on and how, what it can do, how to load it. No paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
import transformers
import yaml

from prealign_ds import __version__
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import RunSettings
from prealign_ds.corpus.clone import CLONE_LANGUAGE
from prealign_ds.exporting.source import Source
from prealign_ds.exporting.tokenizer import CLONE_FOLDER, CLOSE, OPEN
from prealign_ds.training.monitor import Series

_PAPER = "[PREALIGN](https://arxiv.org/abs/2407.16222)"


def model_card(
    source: Source, num_parameters: int, vocab_size: int, rows: int, dtype: str, license_name: str | None
) -> str:
    """The text of ``README.md``.

    Args:
        source: The model.
        num_parameters: Of the training model.
        vocab_size: Size V of the tokenizer it was trained with.
        rows: Rows of the embeddings.
        dtype: Of the weights.
        license_name: Of the model; None leaves the field out.
    """
    settings = source.settings
    languages = [name for name in _languages(settings) if name != CLONE_LANGUAGE]
    front = {
        "language": languages,
        **({"license": license_name} if license_name else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prealign", "prealign-ds", "cross-lingual", "deepspeed", settings.model.architecture],
    }
    metrics = [record for record in Series(source.run_dir / "metrics.jsonl").records() if _until(record, source)]
    evaluations = [record for record in Series(source.run_dir / "eval.jsonl").records() if _until(record, source)]
    sections = {
        f"{source.run_dir.resolve().name}": _summary(source, num_parameters, languages),
        "Loading it": _loading(settings, vocab_size, rows, source.vocabulary, dtype),
        "Data": _data(settings, metrics),
        "Training": _training(source, metrics),
        "Results": _results(evaluations),
        "Limits": "A pretrained model: it continues text, follows no instructions, and repeats what its text holds, "
        "errors and prejudices too.",
        "Settings": f"```yaml\n{yaml.safe_dump(_without_paths(settings), sort_keys=False, allow_unicode=True)}```",
    }
    body = "\n\n".join(
        f"{'##' if place else '#'} {title}\n\n{text}" for place, (title, text) in enumerate(sections.items())
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{body}\n"


def _languages(settings: RunSettings) -> list[str]:
    return list(dict.fromkeys(corpus.language for corpus in settings.data.corpora))


def _until(record: dict[str, Any], source: Source) -> bool:
    return record.get("tokens", 0) <= source.tokens


def _recipe(settings: RunSettings, stage: str) -> str:
    switches = settings.switches and stage == "pretrain"
    kind = f"{settings.codeswitch.mode.replace('_', '-')} code-switching" if switches else ""
    parts = ["alignment init" if "align" in settings.stages else "", kind]
    if all(parts) and settings.codeswitch.mode == "input_only":
        return "PreAlign: alignment init, then pretraining with input-only code-switching"
    return " and ".join(part for part in parts if part) or "Joint Training, without alignment"


def _summary(source: Source, num_parameters: int, languages: list[str]) -> str:
    model, clone = source.settings.model, source.settings.has_clone
    spoken = ", ".join(languages) + (" and En-Clone" if clone else "")
    start = f" It started from the weights of {model.start_from.name}." if model.start_from else ""
    return (
        f"A causal language model of {spoken}: {model.architecture}, {model.num_layers} layers of width "
        f"{model.hidden_size}, {num_parameters:,} parameters in training, {source.settings.data.sequence_length} "
        f"positions. Recipe: {_recipe(source.settings, source.stage)} ({_PAPER}). "
        f"It has read {source.tokens:,} tokens.{start}"
    )


def _loading(settings: RunSettings, vocab_size: int, rows: int, vocabulary: int, dtype: str) -> str:
    lines = [
        "```python",
        "from transformers import pipeline",
        "",
        'generate = pipeline("text-generation", model="THIS_FOLDER")',
        'print(generate("The ", max_new_tokens=32)[0]["generated_text"])',
        "```",
        "",
        f"Weights are {dtype}, embeddings have {rows:,} rows.",
    ]
    if rows > vocabulary:
        lines.append(f"Ids from {vocabulary:,} on are padding: no text has them, and generation never draws them.")
    if settings.has_clone:
        lines.append(
            f"En-Clone is a second language for experiments: English in which token `id` is `id + {vocab_size}`. Its "
            f"words are shown as `{OPEN}piano{CLOSE}`; special tokens are shared. Text is always encoded as English: "
            f"add {vocab_size} to the ids of a text (but not to special ones) to have it in En-Clone, or take the "
            f"tokenizer in `{CLONE_FOLDER}`, for which plain text is En-Clone and English stands in `{OPEN}{CLOSE}`."
        )
    return "\n".join(lines)


def _data(settings: RunSettings, metrics: list[dict[str, Any]]) -> str:
    corpora = settings.data.corpora
    total = sum(corpus.weight for corpus in corpora)
    rows = [f"| {c.name} | {c.language} | {100 * c.weight / total:.1f} % |" for c in corpora]
    text = "\n".join(["| corpus | language | share of the samples |", "|---|---|---|", *rows])
    if settings.table is None:
        return text
    text += f"\n\nAlignment table: {_table(settings)}"
    covered = [r["codeswitch_coverage"] for r in metrics if r.get("codeswitch_coverage") is not None]
    rates = [r["codeswitch_rate"] for r in metrics if r.get("codeswitch_rate") is not None]
    if covered:
        text += (
            f" It covers {100 * sum(covered) / len(covered):.1f} % of the running words of "
            f"{settings.data.source_language}; {100 * sum(rates) / len(rates):.2f} % were switched."
        )
    return text


def _table(settings: RunSettings) -> str:
    assert settings.table is not None
    if not settings.table.path.is_file():
        return f"{settings.table.path.name}."
    table = AlignmentTable.load(settings.table.path).top(settings.table.top_share)
    pairs = [int((table.edge_language == place).sum()) for place in range(len(table.languages))]
    shown = ", ".join(f"{number:,} pairs with {name}" for number, name in zip(pairs, table.languages, strict=True))
    sources = ", ".join(Path(name).name for name in table.sources[:6])
    return f"{len(table.words):,} words of {settings.data.source_language}, {shown} (from {sources})."


def _training(source: Source, metrics: list[dict[str, Any]]) -> str:
    settings, lines = source.settings, []
    for stage in settings.stages:
        records = [record for record in metrics if record["stage"] == stage]
        if not records:
            continue
        last, section = records[-1], getattr(settings, stage)
        batch = section.batch_tokens or settings.pretrain.batch_tokens
        lines.append(
            f"- {stage}: {last['step']:,} steps of {batch:,} tokens, peak learning rate "
            f"{section.optimizer.learning_rate:g} ({section.optimizer.schedule}), last loss {_number(last['loss'])}"
        )
    engine = f"DeepSpeed {deepspeed.__version__}, {settings.deepspeed.name}"
    if source.layout:
        engine += f", ZeRO {source.layout['zero_stage']} on {source.layout['world_size']} rank(s)"
    lines.append(f"- {engine}; seed {settings.seed}")
    versions = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    return "\n".join([*lines, f"- exported by PreAlign-DS {__version__} from {source.folder.name} ({versions})"])


def _results(evaluations: list[dict[str, Any]]) -> str:
    """The last measurement of each kind."""
    found = {key: record for record in evaluations for key in record if key not in ("stage", "step", "tokens")}
    if not found:
        return "Not measured."
    lines = []
    if "perplexity" in found:
        record = found.pop("perplexity")
        bits = record.get("bits_per_byte", {})
        rows = [f"| {name} | {_number(v)} | {_number(bits.get(name))} |" for name, v in record["perplexity"].items()]
        lines += [f"Held-out text, after {record['tokens']:,} tokens:", ""]
        lines += ["| language | perplexity | bits per byte |", "|---|---|---|", *rows, ""]
    for period, directions in found.get("knowledge", {}).get("knowledge", {}).items():
        shown = ", ".join(f"{name} {100 * kinds['all']['accuracy']:.1f} %" for name, kinds in directions.items())
        lines.append(f"- facts of period {period} known (chance 25 %): {shown}")
    for language, kinds in found.get("similarity", {}).get("similarity", {}).items():
        for kind, name in (("held_in", "aligned"), ("held_out", "held-out")):
            if kinds.get(kind):
                lines.append(f"- cosine of {name} words, en-{language}, by layer: {_list(kinds[kind]['cosine'])}")
    for language, counted in found.get("leakage", {}).get("leakage", {}).items():
        if counted:
            lines.append(f"- generations that hold {language}: {100 * counted['share']:.2f} % of {counted['n']:,}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _without_paths(settings: RunSettings) -> dict[str, Any]:
    """The settings with the last part of each path."""

    def shorten(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shorten(item) for item in value]
        return value.name if isinstance(value, Path) else value

    python: dict[str, Any] = shorten(
        settings.model_dump(exclude={"run_dir", "world_size", "checkpoint", "guards", "log"})
    )
    return json.loads(json.dumps(python))  # tuples become lists
