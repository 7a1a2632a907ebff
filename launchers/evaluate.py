"""Evaluate a trained model: what its recipe's section evaluation asks for, or what --only names.

    deepspeed launchers/evaluate.py RUN_DIR [--model FOLDER] [--only NAME ...] [dotted.key=value ...]
    python launchers/evaluate.py RUN_DIR                                                     one process

RUN_DIR is the folder of a run; its config.yaml names text, table and settings. --model takes another model than
RUN_DIR/model: RUN_DIR/align, the end of stage 1; a checkpoint, RUN_DIR/checkpoints/pretrain/step-00000400; or an
exported model of the same shape. Names: perplexity, knowledge (the facts of the last period that has ended),
similarity, leakage, classification. The results are printed, and written to FOLDER/evaluation.json beside what is
there (a checkpoint's to RUN_DIR/evaluation-STAGE-STEP.json: nothing is added to a checkpoint).
"""

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run

NAMES = ("perplexity", "knowledge", "similarity", "leakage", "classification")


def parse_arguments() -> argparse.Namespace:
    """The command line; ``--model`` is filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, YAML values")
    parser.add_argument("--model", type=Path, help="model folder or checkpoint; default RUN_DIR/model")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--preempted-file", type=Path, help="written when the evaluation was told to stop")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    arguments.model = arguments.model or arguments.run_dir / "model"
    return arguments


def main() -> None:
    """Parse the command line, load the model, measure."""
    arguments = parse_arguments()

    from prealign_ds.recipe import load_run

    overrides = [word for word in arguments.overrides if "=" in word]
    settings = load_run(arguments.run_dir, overrides)
    if not arguments.model.is_dir():
        raise ValueError(f"{arguments.model}: no model here; finish the run, or name one with --model")

    from prealign_ds.files import read_json, write_json
    from prealign_ds.training.checkpoint import is_checkpoint
    from prealign_ds.training.environment import join_world
    from prealign_ds.training.evaluations import evaluate_saved
    from prealign_ds.training.preemption import stoppable
    from prealign_ds.training.run import Run

    world = join_world(settings.world_size)
    with stoppable(world, arguments.preempted_file) as stop:
        found = evaluate_saved(Run(settings, world), arguments.model, arguments.only, stop.check)
    if world.is_main:
        for name, results in found.items():
            print(f"{name}: {json.dumps(results, ensure_ascii=False)}")
        path = arguments.model / "evaluation.json"
        if is_checkpoint(arguments.model):
            path = arguments.run_dir / f"evaluation-{arguments.model.parent.name}-{arguments.model.name}.json"
        write_json(path, (read_json(path) if path.exists() else {}) | found)


if __name__ == "__main__":
    run(main)
