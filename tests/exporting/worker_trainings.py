"""Trains tiny models for the export: worker_trainings.py FOLDER RANKS; the 1 or 2 ranks train what is theirs."""

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prealign_ds.recipe import load_settings
from prealign_ds.training.environment import join_world, leave_world
from prealign_ds.training.loop import train
from prealign_ds.training.preemption import stoppable
from prealign_ds.training.run import Run

UNTIED, LLAMA = "model.tied_embeddings=false", "model.architecture=llama"
RUNS = {
    "1": {"zero0": (0, []), "zero2_llama": (2, [LLAMA, UNTIED]), "zero3_untied": (3, [UNTIED])},
    "2": {"zero1_two": (1, [LLAMA]), "zero2_two": (2, [UNTIED]), "zero3_two": (3, [LLAMA, UNTIED])},
}


def main():
    folder, ranks = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    world = join_world(int(ranks))
    with stoppable(world, None) as stop:
        for name, (stage, overrides) in RUNS[ranks].items():
            words = [f"run_dir={folder}/{name}", f"deepspeed=tests/distributed/zero{stage}_fp32.json", *overrides]
            settings = load_settings(f"{folder}/recipe.yaml", words)
            train(Run(settings, world), stop)
            gc.collect()


if __name__ == "__main__":
    main()
    leave_world()
