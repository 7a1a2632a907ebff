"""The evaluations of a run as local tasks of lm-evaluation-harness, for exported models: no hub, no network.

    python tools/harness_tasks.py RUN_DIR --output DIR [dotted.key=value ...]

DIR gets a task for each held-out text (perplexity, bits per byte), tagged `prealign`, and one for each direction of the
run's facts (accuracy); those in En-Clone are tagged `prealign_clone` and need the export's second tokenizer. The
commands to run them are printed. Their numbers are those of launchers/evaluate.py: one folder does for all runs on the
same held-out text and tokenizer.
"""

import argparse
import contextlib
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run


def main() -> None:
    """Parse, write the folder, say how to use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, YAML values")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_intermixed_args()
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed then logs
        import torch

        from prealign_ds.exporting.harness import commands, write_tasks
        from prealign_ds.recipe import load_run
        from prealign_ds.training.environment import World
        from prealign_ds.training.run import Run

        of_run = Run(load_run(arguments.run_dir, arguments.overrides), World(0, 1, torch.device("cpu")))
        written = write_tasks(of_run, arguments.output)
    for name, measured in written.items():
        print(f"{name}: {measured}")
    print(*commands(of_run, arguments.output), sep="\n")


if __name__ == "__main__":
    run(main)
