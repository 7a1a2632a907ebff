"""From the folders of runs to ``results.json``: perplexities, percentages, and series over LM tokens."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from prealign_ds.evaluation.knowledge import KnowledgeResults, over_periods
from prealign_ds.files import read_json
from prealign_ds.reporting.runs import RunFolder
from prealign_ds.reproduction.jobs import baseline_file
from prealign_ds.reproduction.paper import paper_results
from prealign_ds.reproduction.preset import BASELINE, Experiment, Preset, run_folder
from prealign_ds.reproduction.runner import times
from prealign_ds.reproduction.systems import SYSTEMS

TABLES = {
    "table1": ("only_tgt", "full_tgt", "joint", "prealign", "perfect"),
    "table2": ("joint", "joint_cs", "init_only", "prealign"),
    "table3": ("joint", "prealign_vanilla_cs", "prealign"),
    "table4": ("prealign_beta25", "prealign_beta50", "prealign_beta75", "prealign"),
}
"""The systems of the tables on En-Clone."""
FIGURES = {
    "figure3": ("joint", "prealign"),
    "figure4": ("joint", "joint_cs", "init_only", "prealign"),
    "figure5": TABLES["table4"],
}
_PACKAGES = ("torch", "deepspeed", "transformers", "numpy")


class RunResults(RunFolder):
    """What a run of the paper has left."""

    def cells(self) -> dict[str, Any]:
        """The run's row of a table, with what has been measured."""
        cells: dict[str, Any] = {"ppl": self.evaluation.get("perplexity"), **self._transfer()}
        if self.is_finished and (results := self.knowledge()):
            source, mean = self.settings.data.source_language, over_periods(results)
            crossing = {
                d.removeprefix(f"{source}->"): kinds for d, kinds in mean.items() if d.startswith(f"{source}->")
            }
            cells["clka"] = {x: _percent(kinds["all"]) for x, kinds in crossing.items() if x != source}
        leaks = self.evaluation.get("leakage", {})
        cells["leakage"] = {
            language: {"mean": 100 * found["share"], "ci95": [100 * x for x in found["interval"]], "n": found["n"]}
            for language, found in leaks.items()
            if found and language != "all"
        }
        return {name: value for name, value in cells.items() if value}

    def _transfer(self) -> dict[str, Any]:
        accuracy = self.evaluation.get("classification", {}).get("accuracy", {})
        measured = {language: found for language, found in accuracy.items() if found}
        return {
            "zs_clt": {language: 100 * found["mean"] for language, found in measured.items()},
            "zs_clt_std": {x: 100 * found["std"] for x, found in measured.items() if found["std"] is not None},
        }

    def knowledge(self) -> list[KnowledgeResults]:
        """The results of every period that has ended."""
        return [result for record in self.records for result in record.get("knowledge", {}).values()]

    def best(self) -> dict[str, Any]:
        """The lowest perplexity on the way, for a system that repeats its own data: Only-Tgt.

        Returns:
            ``ppl``, ``best_tokens``, the LM tokens read by then, and ``epochs``, how often that was the whole text.
        """
        measured = [record for record in self.records if "perplexity" in record]
        if not self.is_finished or not measured:
            return {}
        (corpus,) = self.settings.data.corpora
        best = min(measured, key=lambda record: record["perplexity"][corpus.language])
        found = {"ppl": best["perplexity"], "best_tokens": best["tokens"]}
        manifest = corpus.path / "manifest.json"
        if manifest.is_file():
            found["epochs"] = best["tokens"] / read_json(manifest)["splits"][corpus.split]["tokens"]
        return found

    def by_frequency(self) -> dict[str, Any]:
        """Figure 3: accuracy by direction and frequency, over all periods and in each."""
        periods = [(r["tokens"], result) for r in self.records for result in r.get("knowledge", {}).values()]
        if not periods:
            return {}
        return {
            direction: {
                frequency: _percent(found)
                | {"periods": [[tokens, 100 * r[direction][frequency]["accuracy"]] for tokens, r in periods]}
                for frequency, found in kinds.items()
            }
            for direction, kinds in over_periods([result for _, result in periods]).items()
        }

    def similarity(self, kind: str, layers: slice) -> list[list[float]]:
        """Figure 4: tokens, and the mean cosine over all languages and some layers.

        Args:
            kind: ``cosine`` of aligned words, or ``random`` for that of other pairs.
            layers: Which of the layers 0 .. L+1.
        """
        series = []
        for record in self.records:
            splits = [found["held_in"] for found in record.get("similarity", {}).values() if found["held_in"]]
            cosines = [value for split in splits for value in split[kind][layers]]
            if cosines:
                series.append([record["tokens"], sum(cosines) / len(cosines)])
        return series

    def by_word(self) -> dict[str, Any]:
        """Figure 5: perplexity of words that the alignment stage saw, and of others, by language."""
        return _by_word(self.evaluation)

    def describe(self) -> dict[str, Any]:
        """What the report says of the run itself."""
        settings = self.settings
        total = sum(corpus.weight for corpus in settings.data.corpora)
        return {
            "is_finished": self.is_finished,
            "seed": settings.seed,
            "lm_tokens": settings.lm_tokens,
            "text_tokens": {c.language: round(settings.lm_tokens * c.weight / total) for c in settings.data.corpora},
            "align_tokens": self.align_tokens,
        }


def _by_word(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {
        language: {name: group["perplexity"] for name, group in groups.items()}
        for language, groups in evaluation.get("by_word", {}).items()
        if groups
    }


def _percent(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "mean": 100 * found["accuracy"],
        "ci95": [100 * found["low"], 100 * found["high"]],
        "n": found["num_facts"],
    }


def collect(name: str, preset: Preset, output: Path) -> dict[str, Any]:
    """Everything that the finished runs of ``output`` say, in the shape of ``results.json``."""
    runs = {experiment: _runs_of(output, experiment, e.systems) for experiment, e in preset.experiments.items()}
    clone, real = runs["en_clone"], runs.get("real", {})
    cells = {slug: run.best() if slug == "only_tgt" else run.cells() for slug, run in clone.items()}
    results: dict[str, Any] = {
        table: {slug: cells[slug] for slug in slugs if cells.get(slug)} for table, slugs in TABLES.items()
    }
    results["table5"] = {slug: row for slug, run in real.items() if (row := run.cells())}
    shown = {figure: {x: clone[x] for x in slugs if x in clone} for figure, slugs in FIGURES.items()}
    results["figure3"] = {slug: found for slug, run in shown["figure3"].items() if (found := run.by_frequency())}
    for figure, layers in (("figure4", slice(None)), ("figure4_embeddings", slice(1))):
        for key, kind in ((figure, "cosine"), (f"{figure}_random", "random")):
            series = {slug: run.similarity(kind, layers) for slug, run in shown["figure4"].items()}
            results[key] = {slug: points for slug, points in series.items() if points}
    results["figure5"] = {slug: found for slug, run in shown["figure5"].items() if (found := run.by_word())}
    results["figure5_joint"] = _baselines(preset.en_clone, output, clone)
    results["perplexity_ratio"] = _ratios(clone.get(BASELINE), clone.get("prealign"))
    results["paper"] = paper_results(preset.paper_size)
    results["settings"] = _settings(name, preset, output, runs)
    return results


def _baselines(experiment: Experiment, output: Path, runs: dict[str, RunResults]) -> dict[str, Any]:
    """Joint Training on the groups of words of each system of Figure 5."""
    joint = runs.get(BASELINE)
    if joint is None:
        return {}
    folders = {slug: run_folder(output, "en_clone", slug) for slug in experiment.partly_aligned()}
    files = {slug: baseline_file(experiment, folder, joint.settings) for slug, folder in folders.items()}
    found = {slug: _by_word(read_json(file)) for slug, file in files.items() if file.is_file()}
    found["prealign"] = joint.by_word()  # PreAlign aligned the whole table, with which Joint Training was measured too
    return {slug: groups for slug, groups in found.items() if groups}


def _runs_of(output: Path, experiment: str, slugs: Sequence[str]) -> dict[str, RunResults]:
    folders = {slug: run_folder(output, experiment, slug) for slug in SYSTEMS if slug in slugs}
    return {slug: RunResults(path) for slug, path in folders.items() if (path / "config.yaml").is_file()}


def _ratios(joint: RunResults | None, prealign: RunResults | None) -> dict[str, list[list[float]]]:
    """PreAlign's perplexity over that of Joint Training, at the tokens where Joint Training was measured.

    Between its own measurements, PreAlign's log-perplexity is taken to be linear in the tokens.
    """
    if joint is None or prealign is None:
        return {}
    series = {}
    for language, points in joint.perplexities().items():
        others = np.array(prealign.perplexities().get(language, []))
        if len(others):
            within = [(x, value) for x, value in points if others[0, 0] <= x <= others[-1, 0]]
            logs = np.interp([x for x, _ in within], others[:, 0], np.log(others[:, 1]))
            series[language] = [[x, float(np.exp(y)) / value] for (x, value), y in zip(within, logs, strict=True)]
    return {language: points for language, points in series.items() if points}


def _settings(name: str, preset: Preset, output: Path, runs: dict[str, dict[str, RunResults]]) -> dict[str, Any]:
    left_out = {
        experiment: f"{', '.join(map(str, e.missing()))}: not there; bring them along and run the command again"
        for experiment, e in preset.experiments.items()
        if e.missing()
    }
    return {
        "preset": name,
        "title": preset.title,
        "paper_size": preset.paper_size,
        "left_out": left_out,
        "recipes": {
            experiment: e.model_dump(mode="json", exclude={"needs"}) | {"resolved": _resolved(runs[experiment])}
            for experiment, e in preset.experiments.items()
        },
        "runs": {
            experiment: {slug: run.describe() for slug, run in found.items()} for experiment, found in runs.items()
        },
        "seconds": times(output),
        "machine": {"system": platform.platform(), "processor": _processor(), "memory_gib": _memory_gib()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}},
    }


def _resolved(runs: dict[str, RunResults]) -> dict[str, Any] | None:
    """Every setting of PreAlign's run, or of another one as long as that has not begun."""
    run = runs.get("prealign", next(iter(runs.values()), None))
    return run.settings.model_dump(mode="json") if run else None


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _processor() -> str:
    """The name of a GPU where there is one, else of the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()
