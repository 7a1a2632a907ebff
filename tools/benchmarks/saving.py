"""What a checkpoint costs beside DeepSpeed's bare save, in one process, turn about.

    python tools/benchmarks/saving.py [--repeats 5] [--millions 45] [--scratch FOLDER]

Ours is the time that training waits: DeepSpeed's save and the manifest, while a thread brings the files to the disk
(``seconds_to_complete``). What the bare save has written may never leave the machine's memory, so a bare save followed
by fsync is measured too.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def measure_saving(scratch: Path, repeats: int, millions: int = 45) -> dict[str, Any]:
    """Seconds and bytes of a save: ours, bare, and bare with fsync.

    Args:
        scratch: A folder on the disk to measure.
        repeats: Saves of each kind.
        millions: Millions of parameters; a checkpoint under ZeRO takes 16 bytes for each.
    """
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config

    from prealign_ds.alignment.stage import JointModel
    from prealign_ds.config import OptimizerSettings
    from prealign_ds.files import fsync_path
    from prealign_ds.training.checkpoint import Checkpoints
    from prealign_ds.training.engine import checkpoint_bytes, engine_config, start_engine
    from prealign_ds.training.environment import join_world
    from prealign_ds.training.plan import StagePlan

    world = join_world()
    width = 512
    model = AutoModelForCausalLM.from_config(
        GPT2Config(n_layer=2, n_embd=width, n_head=8, vocab_size=millions * 10**6 // width)
    )
    plan = StagePlan("pretrain", 0, 8, 1, 1, 1, 1, 8)
    path = Path(__file__).resolve().parents[2] / "ds_configs" / "cpu_fp32.json"
    config = engine_config(path, plan, OptimizerSettings(learning_rate=1e-3)) | {"zero_optimization": {"stage": 1}}
    engine = start_engine(JointModel(model, 1000), config)
    tokens = torch.arange(8, device=world.device).unsqueeze(0)
    engine.backward(engine(tokens, tokens, 1.0)[0])
    engine.step()
    num_bytes = checkpoint_bytes(engine, sum(weight.numel() for weight in model.parameters()))
    seconds: dict[str, list[float]] = {"ours": [], "bare": [], "bare_fsync": []}
    sizes: list[int] = []
    seconds_to_complete: list[float] = []
    for repeat in range(repeats + 1):
        for kind, values in seconds.items():
            folder = scratch / kind
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()
            begun = time.perf_counter()
            if kind == "ours":
                checkpoints = Checkpoints(folder, world)
                checkpoints.save(engine, 1, 8, num_bytes, {})
                values.append(time.perf_counter() - begun)
                complete = False
                while not complete:
                    time.sleep(0.05)  # training
                    asked = time.perf_counter()
                    complete = checkpoints.settle(wait=False)
                    values[-1] += time.perf_counter() - asked
                seconds_to_complete.append(time.perf_counter() - begun)
            else:
                engine.save_checkpoint(str(folder), tag="step", client_state={"step": 1}, save_latest=False)
                for file in folder.rglob("*") if kind == "bare_fsync" else ():
                    fsync_path(file)
                values.append(time.perf_counter() - begun)
            sizes.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
            shutil.rmtree(folder)
        if repeat == 0:  # it warmed up
            for values in (*seconds.values(), seconds_to_complete):
                values.clear()

    def summary(values: list[float]) -> dict[str, float]:
        return {"min": min(values), "median": statistics.median(values), "max": max(values)}

    ours, bare, synced = seconds["ours"], seconds["bare"], seconds["bare_fsync"]
    return {
        "saving_bytes": max(sizes),
        "saving_seconds": {kind: summary(values) for kind, values in seconds.items()},
        "saving_seconds_to_complete": summary(seconds_to_complete),
        "saving_vs_bare": summary([a / b for a, b in zip(ours, bare, strict=True)]),
        "saving_minus_bare_s": summary([a - b for a, b in zip(ours, bare, strict=True)]),
        "saving_vs_bare_fsync": summary([a / b for a, b in zip(ours, synced, strict=True)]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(), help="a folder on the disk to measure; default: here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--millions", type=int, default=45)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        print(json.dumps(measure_saving(Path(scratch), arguments.repeats, arguments.millions), indent=2))
