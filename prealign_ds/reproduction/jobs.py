"""The commands of a reproduction: data preparation, training and evaluation of every system."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prealign_ds.files import read_json
from prealign_ds.reproduction.preset import Experiment, Preset, made_by, run_folder


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: Its name, which is also that of its log.
        words: What to run.
        makes: What the command leaves, complete or not at all.
        keys: Where ``makes`` is a JSON file that several commands write to: the keys that this one writes.
    """

    name: str
    words: list[str]
    makes: Path
    keys: tuple[str, ...] = ()

    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.makes.exists() and (not self.keys or set(self.keys) <= read_json(self.makes).keys())


def pretrain_words(experiment: Experiment, folder: Path, slug: str) -> list[str]:
    """The launcher and arguments that train a system."""
    return [
        "launchers/pretrain.py", str(experiment.recipe), *experiment.run_overrides(slug), f"run_dir={folder}",
    ]  # fmt: skip


def evaluate_words(experiment: Experiment, folder: Path, slug: str) -> list[str]:
    """The launcher and arguments that measure a trained system."""
    # --model ends the names: further overrides may follow.
    return [
        "launchers/evaluate.py", "--only", *experiment.measured(slug), "--model", f"{folder}/model", str(folder),
        *experiment.evaluate_overrides(slug),
    ]  # fmt: skip


def all_jobs(preset: Preset, output: Path, launcher: list[str], more: list[str]) -> list[Job]:
    """Every job of a preset that runs here, in order, without the experiments whose files are missing.

    Args:
        preset: The preset.
        output: Folder of the reproduction.
        launcher: Words that start a launcher of this project.
        more: Overrides for this machine.
    """
    jobs: list[Job] = []
    for name, experiment in preset.experiments.items():
        if experiment.missing():
            continue
        for command in experiment.prepare:
            *_, makes = made_by(command)
            jobs.append(Job(f"prepare {makes}", [sys.executable, *shlex.split(command)], makes))
        for slug in experiment.systems:
            jobs += _jobs_of_system(experiment, name, slug, run_folder(output, name, slug), launcher, more)
    return list({job.name: job for job in jobs}.values())  # experiments may share preparations


def _jobs_of_system(
    experiment: Experiment, name: str, slug: str, folder: Path, launcher: list[str], more: list[str]
) -> Iterator[Job]:
    yield Job(f"train {name} {slug}", [*launcher, *pretrain_words(experiment, folder, slug), *more], folder / "model")
    yield Job(
        f"evaluate {name} {slug}",
        [*launcher, *evaluate_words(experiment, folder, slug), *more],
        folder / "model" / "evaluation.json",
        tuple(experiment.measured(slug)),
    )
