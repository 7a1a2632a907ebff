"""Run a recipe: alignment init, then code-switched pretraining.

    deepspeed launchers/pretrain.py RECIPE.yaml [dotted.key=value ...]                              one node
    deepspeed --hostfile HOSTS launchers/pretrain.py RECIPE.yaml                                    several nodes
    srun torchrun --nnodes=N --nproc-per-node=8 ... launchers/pretrain.py RECIPE.yaml               SLURM
    python launchers/pretrain.py RECIPE.yaml                                                        one process

The run folder gets config.yaml, metrics.jsonl, eval.jsonl, checkpoints/ and at the end model/. The same command again
goes on where the run stopped, on any number of ranks. SIGTERM or SIGUSR1 to a rank: all ranks save after their step and
exit with code 85. Exit code 2 is a mistake that you can mend, 86 a rank that died or hung.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run


def main() -> None:
    """Parse the command line, build the run, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file, see launchers/recipes/")
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, YAML values")
    parser.add_argument("--preempted-file", type=Path, help="written when the run was told to stop and has saved")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()

    from prealign_ds.recipe import load_settings

    settings = load_settings(arguments.recipe, arguments.overrides)

    from prealign_ds.training.environment import join_world
    from prealign_ds.training.loop import train
    from prealign_ds.training.preemption import stoppable
    from prealign_ds.training.run import Run

    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("megatron").setLevel(logging.WARNING)
    world = join_world(settings.world_size)
    with stoppable(world, arguments.preempted_file) as stop:
        train(Run(settings, world), stop)


if __name__ == "__main__":
    run(main)
