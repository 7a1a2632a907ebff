"""The jobs of a reproduction on a cluster: job arrays, and the commands that prepare the data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from prealign_ds.files import atomic_write
from prealign_ds.reproduction.jobs import baseline_words, evaluate_words, pretrain_words
from prealign_ds.reproduction.preset import Preset, made_by, run_folder

TEMPLATE = Path("launchers/slurm/reproduce.sbatch")


def write_jobs(preset: Preset, output: Path) -> list[str]:
    """Write ``output/jobs``: prepare.sh, and train.sbatch and evaluate.sbatch with their lists of tasks.

    The two job arrays are the template with this preset's nodes, tasks and list; a line of a list is a launcher of this
    project with its arguments, for one system.

    Returns:
        The commands to give, in order.

    Raises:
        ValueError: If a word of a task holds a space, which a list cannot.
    """
    folder = output / "jobs"
    experiments = {name: e for name, e in preset.experiments.items() if not e.missing()}
    runs = [(name, e, slug) for name, e in experiments.items() for slug in e.systems]
    lists = {
        "train": [pretrain_words(e, run_folder(output, name, slug), slug) for name, e, slug in runs],
        "evaluate": [evaluate_words(e, run_folder(output, name, slug), slug) for name, e, slug in runs],
    }
    lists["evaluate"] += [
        baseline_words(e, run_folder(output, name, slug))
        for name, e in experiments.items()
        for slug in e.partly_aligned()
    ]
    for kind, tasks in lists.items():
        _write(folder / f"{kind}.txt", [_task(words) for words in tasks])
        _write(folder / f"{kind}.sbatch", [_filled(preset.nodes, len(tasks), folder / f"{kind}.txt", kind)])
    steps = {command: made_by(command)[-1] for e in experiments.values() for command in e.prepare}
    lines = [f"[ -e {shlex.quote(str(makes))} ] || python {command}" for command, makes in steps.items()]
    _write(folder / "prepare.sh", ["#!/usr/bin/env bash", "# From the root of the repository.", "set -eux", *lines])
    return [
        f"bash {folder}/prepare.sh",
        f"job=$(sbatch --parsable {folder}/train.sbatch)",
        f"sbatch --dependency=afterany:$job {folder}/evaluate.sbatch",
    ]


def _write(path: Path, lines: Sequence[str]) -> None:
    with atomic_write(path) as handle:
        handle.writelines(f"{line}\n" for line in lines)


def _task(words: Sequence[str]) -> str:
    for word in words:
        if re.search(r"\s", word):
            raise ValueError(f"{word!r}: a space would end this word in a list of tasks; choose names without")
    return " ".join(words)


def _filled(nodes: int, tasks: int, tasks_file: Path, kind: str) -> str:
    text = TEMPLATE.read_text(encoding="utf-8").rstrip("\n")
    for pattern, value in (
        (r"^#SBATCH --job-name=.*$", f"#SBATCH --job-name=prealign-{kind}"),
        (r"^#SBATCH --array=.*$", f"#SBATCH --array=1-{tasks}"),
        (r"^#SBATCH --nodes=.*$", f"#SBATCH --nodes={nodes}"),
        (r"^tasks=.*$", f"tasks={shlex.quote(str(tasks_file))}"),
    ):
        text, number = re.subn(pattern, lambda match, new=value: new, text, flags=re.MULTILINE)  # type: ignore[misc]
        if number != 1:
            raise ValueError(f"{TEMPLATE}: {number} lines like {pattern}, one is expected; restore the file")
    return text
