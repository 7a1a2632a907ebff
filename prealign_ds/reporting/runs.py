"""Folders of runs, finished or not, read for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from prealign_ds.config import RunSettings
from prealign_ds.files import read_json
from prealign_ds.recipe import flat, load_run
from prealign_ds.training.monitor import Series

Points = list[tuple[float, float]]
"""LM tokens of the run, and a value."""


class RunFolder:
    """What a run has left until now.

    Args:
        folder: Its folder.

    Attributes:
        folder: The same.
        settings: Its configuration.
        metrics: The lines of metrics.jsonl.
        records: The lines of eval.jsonl.
        evaluation: What launchers/evaluate.py found on the final model; empty before.
        is_finished: Whether it has a final model.

    Raises:
        ValueError: If the folder is not that of a run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings: RunSettings = load_run(folder)
        self.metrics = Series(folder / "metrics.jsonl").records()
        self.records = Series(folder / "eval.jsonl").records()
        final = folder / ("align" if self.settings.stages == ["align"] else "model")
        found = final / "evaluation.json"
        self.evaluation: dict[str, Any] = read_json(found) if found.is_file() else {}
        self.is_finished = final.is_dir()

    @property
    def align_tokens(self) -> int:
        """LM tokens of stage 1."""
        return round(self.settings.align.budget_share * self.settings.lm_tokens) if self.aligns else 0

    @property
    def aligns(self) -> bool:
        """Whether the run has a stage 1."""
        return "align" in self.settings.stages

    @property
    def tokens(self) -> int:
        """LM tokens read by the last log line."""
        return self.metrics[-1]["tokens"] if self.metrics else 0

    @property
    def seconds(self) -> float:
        """Time of all logged steps, with what happened between them."""
        steps, total = dict.fromkeys(self.settings.stages, 0), 0.0
        for record in self.metrics:
            total += (record["step"] - steps[record["stage"]]) * record["step_ms"] / 1000
            steps[record["stage"]] = record["step"]
        return total

    def speed(self, stage: str) -> float | None:
        """Median of a stage's tokens per second, or None before it has begun."""
        speeds = [record["tokens_per_s"] for record in self.metrics if record["stage"] == stage]
        return median(speeds) if speeds else None

    def curve(self, key: str, stage: str | None = None) -> Points:
        """A number of metrics.jsonl over tokens, of one stage or of all; of a list, its sum."""
        found = [(r["tokens"], r.get(key)) for r in self.metrics if stage in (None, r["stage"])]
        return [(x, float(sum(y) if isinstance(y, list) else y)) for x, y in found if y is not None]

    def perplexities(self) -> dict[str, list[list[float]]]:
        """Tokens and perplexity during training, by language."""
        series: dict[str, list[list[float]]] = {}
        for record in self.records:
            for language, value in record.get("perplexity", {}).items():
                series.setdefault(language, []).append([record["tokens"], value])
        return series

    def cosines(self, kind: str, language: str | None, split: str = "held_in") -> list[tuple[int, list[float]]]:
        """Evaluations of similarity: tokens, and a value for each of the layers 0 .. L+1.

        Args:
            kind: ``cosine`` of aligned words, ``random`` for that of other pairs, or ``p_at_1``, the mean of both ways.
            language: Which one; None is the mean of all.
            split: ``held_in`` or ``held_out``.
        """
        series = []
        for record in self.records:
            found = record.get("similarity", {})
            splits = [found[x][split] for x in found if language in (None, x) and found[x][split]]
            columns = [column for one in splits for column in _columns(one, kind)]
            if columns:
                series.append((record["tokens"], [_mean(layer) for layer in zip(*columns, strict=True)]))
        return series

    def flat_settings(self) -> dict[str, Any]:
        """Dotted keys and values of the configuration, without the folder's name."""
        return {key: value for key, value in flat(self.settings).items() if key != "run_dir"}


def _columns(split: dict[str, Any], kind: str) -> list[list[float | None]]:
    found = split.get(kind, [])
    return list(found.values()) if isinstance(found, dict) else [found] if found else []


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def named_runs(folders: Sequence[Path]) -> dict[str, RunFolder]:
    """Runs by the ends of their paths, as long as it takes to tell them apart.

    Raises:
        ValueError: If one of the folders is not a run's, or is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise ValueError(f"{folders[place]}: given twice; give each run once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {"/".join(path.parts[-depth:]): RunFolder(path) for path in paths}


def differing_settings(runs: Mapping[str, RunFolder]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs: values in the runs' order, None where a run has none."""
    columns = [run.flat_settings() for run in runs.values()]
    sections = list(RunSettings.model_fields)
    keys = sorted({*chain(*columns)}, key=lambda key: (sections.index(key.split(".")[0]), key))
    found = {key: [values.get(key) for values in columns] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}
