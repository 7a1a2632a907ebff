"""What a checkpoint costs beside DeepSpeed's bare save, in one process, turn about.

    python tools/benchmarks/saving.py [--repeats 5] [--millions 45] [--scratch FOLDER]

Ours is the time that training waits: DeepSpeed's save and the manifest, while a thread brings the files to the disk
(``saving_seconds_to_complete``). What the bare save has written may never leave the machine's memory, so a bare save
followed by fsync is measured too.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from prealign_ds.alignment.stage import JointModel
from prealign_ds.config import OptimizerSettings
from prealign_ds.files import fsync_path
from prealign_ds.model import num_parameters
from prealign_ds.training.checkpoint import Checkpoints
from prealign_ds.training.engine import checkpoint_bytes, engine_config, start_engine
from prealign_ds.training.environment import World, join_world
from prealign_ds.training.kernels import Kernels
from prealign_ds.training.plan import StagePlan
from tools.benchmarks import spread


def measure_saving(scratch: Path, repeats: int, millions: int = 45) -> dict[str, Any]:
    """Seconds and bytes of a save: ours, bare, and bare with fsync.

    Args:
        scratch: A folder on the disk to measure.
        repeats: Saves of each kind.
        millions: Millions of parameters; a checkpoint under ZeRO takes 16 bytes for each.
    """
    world = join_world()
    engine = _engine_after_a_step(millions, world)
    kinds: dict[str, Callable[[Path], tuple[float, float]]] = {
        "ours": partial(_save_ours, engine, world),
        "bare": partial(_save_bare, engine, fsync=False),
        "bare_fsync": partial(_save_bare, engine, fsync=True),
    }
    waited: dict[str, list[float]] = {kind: [] for kind in kinds}
    to_complete: list[float] = []
    sizes: list[int] = []
    for repeat in range(repeats + 1):
        for kind, save in kinds.items():
            folder = scratch / kind
            os.sync()
            seconds, until_complete = save(folder)
            sizes.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
            shutil.rmtree(folder)
            if repeat == 0:
                continue  # it warmed up
            waited[kind].append(seconds)
            if kind == "ours":
                to_complete.append(until_complete)
    ours, bare, synced = waited["ours"], waited["bare"], waited["bare_fsync"]
    return {
        "saving_bytes": max(sizes),
        "saving_seconds": {kind: spread(values) for kind, values in waited.items()},
        "saving_seconds_to_complete": spread(to_complete),
        "saving_vs_bare": spread([a / b for a, b in zip(ours, bare, strict=True)]),
        "saving_minus_bare_s": spread([a - b for a, b in zip(ours, bare, strict=True)]),
        "saving_vs_bare_fsync": spread([a / b for a, b in zip(ours, synced, strict=True)]),
    }


def _engine_after_a_step(millions: int, world: World) -> Any:
    """A model of so many million parameters whose optimizer has its state, under ZeRO 1."""
    width = 512
    model = AutoModelForCausalLM.from_config(
        GPT2Config(n_layer=2, n_embd=width, n_head=8, vocab_size=millions * 10**6 // width)
    )
    plan = StagePlan("pretrain", 0, 8, 1, 1, 1, 1, 8)
    ds_config = {"zero_optimization": {"stage": 1}}
    config = engine_config(ds_config, plan, OptimizerSettings(learning_rate=1e-3), Kernels())
    engine = start_engine(JointModel(model, 1000), config, Kernels())
    tokens = torch.arange(8, device=world.device).unsqueeze(0)
    engine.backward(engine(tokens, tokens, 1.0)[0])
    engine.step()
    return engine


def _save_ours(engine: Any, world: World, folder: Path) -> tuple[float, float]:
    """Seconds that training waits, and seconds until the checkpoint is complete."""
    begun = time.perf_counter()
    checkpoints = Checkpoints(folder, world)
    checkpoints.save(engine, 1, 8, checkpoint_bytes(num_parameters(engine.module.model), 4, 1), {})
    waited, complete = time.perf_counter() - begun, False
    while not complete:
        time.sleep(0.05)  # training
        asked = time.perf_counter()
        complete = checkpoints.settle(wait=False)
        waited += time.perf_counter() - asked
    return waited, time.perf_counter() - begun


def _save_bare(engine: Any, folder: Path, fsync: bool) -> tuple[float, float]:
    """The same of DeepSpeed's save: training waits for all of it."""
    begun = time.perf_counter()
    engine.save_checkpoint(str(folder), tag="step", client_state={"step": 1}, save_latest=False)
    for file in folder.rglob("*") if fsync else ():
        fsync_path(file)
    seconds = time.perf_counter() - begun
    return seconds, seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(), help="a folder on the disk to measure; default: here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--millions", type=int, default=45)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        print(json.dumps(measure_saving(Path(scratch), arguments.repeats, arguments.millions), indent=2))
