"""Perplexity of a trained model on held-out text, in every language of its recipe.

    deepspeed launchers/evaluate.py RUN_DIR [--model FOLDER] [dotted.key=value ...]
    python launchers/evaluate.py RUN_DIR                                              one process

RUN_DIR is the folder of a run; its config.yaml names the text. --model takes another model folder than RUN_DIR/model,
for example RUN_DIR/align, the end of stage 1. The result is printed and written to FOLDER/evaluation.json.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run


def main() -> None:
    """Parse the command line, load the model, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, YAML values")
    parser.add_argument("--model", type=Path, help="model folder; default RUN_DIR/model")
    parser.add_argument("--preempted-file", type=Path, help="written when the evaluation was told to stop")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    folder = arguments.model or arguments.run_dir / "model"
    config = arguments.run_dir / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{arguments.run_dir}: no config.yaml; name the folder of a run")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no model here; finish the run, or name one with --model")

    from prealign_ds.recipe import load_settings

    settings = load_settings(config, arguments.overrides)

    from prealign_ds.files import write_json
    from prealign_ds.training.environment import join_world
    from prealign_ds.training.preemption import stoppable
    from prealign_ds.training.run import Run

    world = join_world(settings.world_size)
    with stoppable(world, arguments.preempted_file) as stop:
        results = Run(settings, world).evaluate(folder, stop.check)
    if world.is_main:
        for language, found in results.items():
            print(f"{language:8} perplexity {found.perplexity:10.3f}   bits per byte {found.bits_per_byte:7.4f}")
        write_json(folder / "evaluation.json", {language: found.as_dict() for language, found in results.items()})


if __name__ == "__main__":
    run(main)
