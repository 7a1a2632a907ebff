"""Presets: what a reproduction runs at one scale, and the checks that come before any compute."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from prealign_ds.config import RunSettings, Settings
from prealign_ds.knowledge.directions import directions_of
from prealign_ds.recipe import check_same_run, load_settings, parse_settings, read_yaml
from prealign_ds.reproduction.systems import SYSTEMS
from prealign_ds.training.plan import plan_stages

MEASURES = ("classification", "leakage")
"""Names of launchers/evaluate.py that only some systems are measured on."""
BASELINE = "joint"
"""Slug of Joint Training, which the others are compared with."""
PRESETS = Path("launchers/presets")


class Experiment(Settings):
    """Runs on one kind of text."""

    recipe: Path
    """The recipe of PreAlign on this text."""
    overrides: list[str] = []
    """Changes of it for all systems, ``dotted.key=value`` without spaces."""
    systems: list[str] = Field(min_length=1)
    """Slugs of the systems to run, in this order."""
    evaluate: list[str] = []
    """Overrides for launchers/evaluate.py, which measures the finished models, without spaces."""
    prepare: list[str] = []
    """How the data comes to be: tools with their arguments, ``tools/fetch_corpus.py ... --output data/en/text``. One is
    not run where its --output exists: each tool leaves that complete or not at all."""
    needs: list[Path] = []
    """Files to bring along; where one is missing, this experiment is left out, and the report says so."""

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        unknown = [slug for slug in self.systems if slug not in SYSTEMS]
        if unknown:
            raise ValueError(f"systems: {', '.join(unknown)} unknown; there are {', '.join(SYSTEMS)}")
        broken = [word for word in self.overrides + self.evaluate if " " in word or "=" not in word]
        if broken:
            raise ValueError(f"{broken[0]!r}: write an override as dotted.key=value without spaces")
        for command in self.prepare:
            if not made_by(command):
                raise ValueError(f"prepare: {command!r}: has no --output")
        return self

    def missing(self) -> list[Path]:
        """The files of :attr:`needs` that are not there."""
        return [path for path in self.needs if not path.is_file()]

    def run_overrides(self, slug: str) -> list[str]:
        """What is put behind the recipe for a system, but for the run folder."""
        return [*self.overrides, *SYSTEMS[slug].overrides(load_settings(self.recipe, self.overrides))]

    def evaluate_overrides(self, measures: Sequence[str]) -> list[str]:
        """What is put behind launchers/evaluate.py for a model that is measured on some of :data:`MEASURES`."""
        others = tuple(f"evaluation.{name}" for name in MEASURES if name not in measures)
        return [word for word in self.evaluate if not word.startswith(others)]

    def partly_aligned(self) -> list[str]:
        """The systems that align a part of W, where Joint Training is there to be compared with them."""
        partly = [slug for slug in self.systems if any(c.startswith("table.top_share") for c in SYSTEMS[slug].changes)]
        return partly if BASELINE in self.systems else []

    def measured(self, slug: str) -> list[str]:
        """The names of launchers/evaluate.py that a system's model is measured on."""
        settings = load_settings(
            self.recipe, [*self.run_overrides(slug), *self.evaluate_overrides(SYSTEMS[slug].measures)]
        )
        wanted = [name for name in SYSTEMS[slug].measures if getattr(settings.evaluation, name) is not None]
        return ["perplexity", *wanted]


class Preset(Settings):
    """Everything that a reproduction runs."""

    title: str
    """What it is, in a line."""
    launch: Literal["local", "slurm"] = "local"
    """local runs every job here, one after the other; slurm writes the jobs for a cluster and runs none."""
    nodes: int = Field(1, ge=1)
    """Nodes of a job (slurm)."""
    ranks: int = Field(1, ge=1)
    """Ranks of a job on each node."""
    at_once: int = Field(1, ge=1)
    """Jobs at a time (local), each on its share of the cores: two small models on a core each beat one on both."""
    paper_size: Literal["150m", "400m", "1.3b"] = "150m"
    """The model of the paper's Table 5 to compare with."""
    en_clone: Experiment
    """English and En-Clone: Tables 1 to 4, all figures."""
    real: Experiment | None = None
    """English and real languages: Table 5."""

    @property
    def experiments(self) -> dict[str, Experiment]:
        """Both, or the one there is, by name."""
        return {"en_clone": self.en_clone} | ({"real": self.real} if self.real else {})


def made_by(command: str) -> list[Path]:
    """The files and folders that a command of ``prepare`` makes; the last one of them says that it is done."""
    words = shlex.split(command)
    found = dict(zip(words, words[1:], strict=False))
    return [Path(found[option]) for option in ("--words", "--output") if option in found]


def load_preset(name: str) -> Preset:
    """A shipped preset by its name, or one of your own by its file.

    Raises:
        ValueError: If there is none, or with every problem in it.
    """
    path = Path(name) if name.endswith(".yaml") else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise ValueError(
            f"--preset {name}: no such file {path}; there are {known}"
            if known
            else f"{PRESETS}: no presets here; run the command from the root of the repository"
        )
    return parse_settings(Preset, read_yaml(path), [], str(path))


def run_folder(output: Path, experiment: str, slug: str) -> Path:
    """The folder of a system's run."""
    return output / "runs" / experiment / slug


def check(preset: Preset, output: Path, more: list[str]) -> None:
    """Everything that can be found out before compute is spent.

    Args:
        preset: The preset.
        output: Folder of the reproduction.
        more: Overrides for this machine.

    Raises:
        ValueError: If a run is not configured well, its folder holds another run, a file is missing that no preparation
            makes, or an evaluation has no text.
    """
    for name, experiment in preset.experiments.items():
        if experiment.missing():
            continue
        budgets = set()
        for slug in experiment.systems:
            where = f"{name}, {slug}"
            overrides = [*experiment.run_overrides(slug), *more, f"run_dir={run_folder(output, name, slug)}"]
            settings = load_settings(experiment.recipe, overrides)
            measured = load_settings(
                experiment.recipe, [*overrides, *experiment.evaluate_overrides(SYSTEMS[slug].measures)]
            )
            plan_stages(settings, preset.nodes * preset.ranks)
            _check_languages(where, measured)
            if preset.launch == "local":
                check_same_run(settings)
                _check_files(where, measured, {path for step in experiment.prepare for path in made_by(step)})
            budgets.add(settings.lm_tokens)
        if len(budgets) > 1:
            raise ValueError(f"{name}: the systems have different lm_tokens {sorted(budgets)}; give all the same")


def _check_languages(where: str, settings: RunSettings) -> None:
    """Raise ValueError if an evaluation asks for a language that the run does not have."""
    data, task, knowledge = settings.data, settings.evaluation.classification, settings.knowledge
    languages = [corpus.language for corpus in data.corpora]
    if unmeasured := set(languages) - {corpus.language for corpus in data.held_out}:
        raise ValueError(
            f"{where}: data.held_out has no {sorted(unmeasured)[0]} text to measure perplexity on; add some"
        )
    if untrained := set(task.test if task else []) - set(languages):
        language = sorted(untrained)[0]
        raise ValueError(f"{where}: evaluation.classification.test.{language}: no corpus in {language}; remove it")
    if knowledge is not None:
        directions_of(knowledge.directions, data.source_language, languages)
        if knowledge.start_tokens + knowledge.period_tokens > settings.lm_tokens:
            raise ValueError(f"{where}: knowledge: no period ends within lm_tokens; lower knowledge.period_tokens")


def _check_files(where: str, settings: RunSettings, made: set[Path]) -> None:
    """Raise ValueError if a file is missing that is not among those ``made``, or in a folder of them."""
    paths = [settings.data.tokenizer, *(corpus.path for corpus in settings.data.corpora + settings.data.held_out)]
    paths += [settings.table.path] if settings.table else []
    paths += settings.knowledge.words if settings.knowledge else []
    if task := settings.evaluation.classification:
        paths += [Path(text) for text in (task.train, *task.test.values()) if text and not text.startswith("hub:")]
    for path in paths:
        if not path.exists() and not made & {path, *path.parents}:
            raise ValueError(f"{where}: {path} is missing, and no step of the preset's prepare makes it")
