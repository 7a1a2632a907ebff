"""The commands of a reproduction: data preparation, training and evaluation of every system."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from prealign_ds.config import RunSettings
from prealign_ds.files import read_json
from prealign_ds.recipe import load_settings
from prealign_ds.reproduction.preset import BASELINE, Experiment, Preset, made_by, run_folder
from prealign_ds.reproduction.systems import SYSTEMS
from prealign_ds.training.plan import plan_stages


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: Its name, which is also that of its log.
        words: What to run.
        makes: What the command leaves, complete or not at all.
        keys: Where ``makes`` is a JSON file that several commands write to: the keys that this one writes.
        after: Names of the jobs that must be done before.
    """

    name: str
    words: list[str]
    makes: Path
    keys: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

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
        *experiment.evaluate_overrides(SYSTEMS[slug].measures),
    ]  # fmt: skip


def baseline_file(experiment: Experiment, folder: Path, joint: RunSettings | None = None) -> Path:
    """What :func:`baseline_words` leaves in the ``folder`` of a run that aligned a part of W.

    Args:
        experiment: The experiment.
        folder: Folder of that run.
        joint: Configuration of Joint Training's run; None takes the recipe's.
    """
    joint = joint or load_settings(experiment.recipe, experiment.run_overrides(BASELINE))
    return folder / f"evaluation-pretrain-{_last_step(joint)}.json"


def baseline_words(experiment: Experiment, folder: Path) -> list[str]:
    """Measure Joint Training on the words that the run in ``folder`` aligned and did not, for Figure 5.

    The last checkpoint of Joint Training is measured with that run's configuration: the words are its, and so is the
    folder that gets the result.
    """
    joint = load_settings(experiment.recipe, experiment.run_overrides(BASELINE))
    checkpoint = folder.parent / BASELINE / "checkpoints" / "pretrain" / _last_step(joint)
    words = ["launchers/evaluate.py", "--only", "perplexity", "--model", str(checkpoint), str(folder)]
    return [*words, *experiment.evaluate_overrides(())]


def _last_step(settings: RunSettings) -> str:
    return f"step-{plan_stages(settings, 1)[-1].num_steps:08d}"


def all_jobs(preset: Preset, output: Path, launcher: Callable[[], list[str]], more: list[str]) -> list[Job]:
    """Every job of a preset that runs here, in order, without the experiments whose files are missing.

    Args:
        preset: The preset.
        output: Folder of the reproduction.
        launcher: Gives the words that start a launcher of this project; each job gets its own.
        more: Overrides for this machine.
    """
    jobs: list[Job] = []
    for name, experiment in preset.experiments.items():
        if experiment.missing():
            continue
        prepared = []
        for command in experiment.prepare:
            *_, makes = made_by(command)
            prepared.append(Job(f"prepare {makes}", [sys.executable, *shlex.split(command)], makes))
            prepared[-1] = replace(prepared[-1], after=tuple(job.name for job in prepared[:-1]))
        jobs += prepared
        for slug in experiment.systems:
            folder, train = run_folder(output, name, slug), f"train {name} {slug}"
            words = [*launcher(), *pretrain_words(experiment, folder, slug), *more]
            jobs.append(Job(train, words, folder / "model", after=tuple(job.name for job in prepared)))
            words, found = evaluate_words(experiment, folder, slug), folder / "model" / "evaluation.json"
            keys = tuple(experiment.measured(slug))
            jobs.append(Job(f"evaluate {name} {slug}", [*launcher(), *words, *more], found, keys, (train,)))
        for slug in experiment.partly_aligned():
            folder = run_folder(output, name, slug)
            words, makes = baseline_words(experiment, folder), baseline_file(experiment, folder)
            after = (f"train {name} {BASELINE}", f"train {name} {slug}")
            jobs.append(Job(f"baseline {name} {slug}", [*launcher(), *words, *more], makes, after=after))
    unique: dict[str, Job] = {}
    for job in jobs:
        unique.setdefault(job.name, job)  # experiments may share preparations
    return list(unique.values())
