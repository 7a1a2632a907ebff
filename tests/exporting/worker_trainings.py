"""Tiny trainings for the export, of one step a stage, into a folder: those of one rank, or those of two."""

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prealign_ds.recipe import load_settings
from prealign_ds.training.environment import join_world, leave_world
from prealign_ds.training.loop import train
from prealign_ds.training.preemption import stoppable
from prealign_ds.training.run import Run

UNTIED, LLAMA, QUICK = "model.tied_embeddings=false", "model.architecture=llama", "data.held_out=[]"
NEOX = "model.architecture=gpt_neox"
PLAIN = ("stages=[pretrain]", "codeswitch.mode=off", QUICK)
ALONE = {
    "zero0": (0, []),
    "zero2": (2, [LLAMA, UNTIED, *PLAIN]),
    "zero3": (3, [UNTIED, *PLAIN]),
    "neox": (0, [NEOX, *PLAIN]),
    "neox_untied": (0, [NEOX, UNTIED, *PLAIN]),
}
TWO_RANKS = {
    "zero1_two": (1, [LLAMA, *PLAIN]),
    "zero1_bf16_two": (1, ["deepspeed=ds_configs/zero1_bf16.json", *PLAIN]),
    "zero2_two": (2, [UNTIED, *PLAIN]),
    "zero3_two": (3, [LLAMA, UNTIED, QUICK]),
}


def main(folder):
    world = join_world()
    runs = ALONE if world.size == 1 else TWO_RANKS
    with stoppable(world, None) as stop:
        for name, (stage, overrides) in runs.items():
            words = [f"run_dir={folder}/{name}", f"deepspeed=tests/distributed/zero{stage}_fp32.json", *overrides]
            settings = load_settings(f"{folder}/recipe.yaml", words)
            train(Run(settings, world), stop)
            gc.collect()
    leave_world()


if __name__ == "__main__":
    main(sys.argv[1])
