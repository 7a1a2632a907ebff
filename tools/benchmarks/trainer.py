"""Our launcher beside Hugging Face's Trainer: the same model, tokens and DeepSpeed configuration, in turns.

    python tools/benchmarks/trainer.py [--repeats 5] [--steps 14] [dotted.key=value ...]

Each is started as its documentation says: ``deepspeed launchers/pretrain.py RECIPE``, with code-switching, and
``deepspeed _hf_trainer.py --deepspeed ds_config.json ...``. ``as_started`` is the environment that the documentation
gives: none. ``same_env`` gives both the allocator's settings and the number of threads that ours finds by itself. Steps
are timed by each one's own clock; neither evaluates, and neither saves between the steps that are timed.

Before that, without code-switching, both must have the same losses.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from prealign_ds.cli import run
from prealign_ds.config import RunSettings
from prealign_ds.files import read_json, write_json
from prealign_ds.training.environment import World, free_port
from prealign_ds.training.monitor import Series
from prealign_ds.training.plan import StagePlan, plan_stages
from prealign_ds.training.run import Run
from tools.benchmarks import ratios, spread
from tools.benchmarks._workload import ROOT, autocasts, build_data, recipe_words, reference_recipe, workload_settings

SKIPPED_STEPS = 4
TOLERANCES = {"torch.bfloat16": 5e-3, "torch.float32": 1e-3}  # of losses, relative: sums come in another order
SAME_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
}
ENVIRONMENTS: dict[str, dict[str, str]] = {"same_env": SAME_ENVIRONMENT, "as_started": {}}


def measure_trainer(scratch: Path, repeats: int, steps: int, changes: list[str]) -> dict[str, Any]:
    """``vs_hf_trainer_same_env`` and ``vs_hf_trainer_as_started``: throughput, ours / theirs; and seconds of a step.

    Args:
        scratch: An empty folder.
        repeats: Processes of each side in each environment.
        steps: Steps of a process, of which the first :data:`SKIPPED_STEPS` are not timed.
        changes: Overrides for the recipe.
    """
    build_data(scratch / "data")
    recipe, own = reference_recipe()
    words = recipe_words(scratch / "data", recipe, scratch / "never", [*own, *changes])
    sides = Sides(scratch, words, steps)
    sides.check()
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for name, environment in ENVIRONMENTS.items():
            for side in ("ours", "theirs")[:: -1 if repeat % 2 else 1]:
                found = (sides.ours if side == "ours" else sides.theirs)(f"{side}_{name}_{repeat}", environment)
                seconds.setdefault(f"{side}_{name}", []).append(fmean(found["seconds"]))
    return {
        **{
            f"vs_hf_trainer_{name}": ratios(seconds[f"theirs_{name}"], seconds[f"ours_{name}"]) for name in ENVIRONMENTS
        },
        "trainer_step_s": {name: spread(values) for name, values in seconds.items()},
    }


class Sides:
    """Both programs, a process a call.

    Args:
        scratch: Where their files go.
        words: Recipe and overrides.
        steps: Steps of a process.
    """

    def __init__(self, scratch: Path, words: list[str], steps: int):
        self._scratch = scratch
        (plan,) = plan_stages(workload_settings(words), 1)
        self._words = [*words, f"lm_tokens={steps * plan.batch_tokens}", "evaluation.every_tokens=0"]
        self._words.append("checkpoint.every_tokens=0")
        self._settings = workload_settings([*self._words, "codeswitch.mode=off"])
        (self._plan,) = plan_stages(self._settings, 1)
        _write_samples(scratch, self._settings, self._plan)
        write_json(scratch / "ds_config.json", _with_auto(read_json(self._settings.deepspeed)))

    def check(self) -> None:
        """Raise if they do not compute the same without code-switching."""
        ours = self.ours("ours_check", SAME_ENVIRONMENT, "codeswitch.mode=off")
        theirs, config = self.theirs("theirs_check", SAME_ENVIRONMENT), read_json(self._settings.deepspeed)
        half = autocasts(self._settings) or config.get("bf16", {}).get("enabled", False)
        check_same(ours, theirs, "torch.bfloat16" if half else "torch.float32")

    def ours(self, name: str, environment: dict[str, str], *changes: str) -> dict[str, Any]:
        """Seconds of the steps that count, and all losses."""
        folder = self._scratch / name
        _deepspeed(environment, "launchers/pretrain.py", *self._words, f"run_dir={folder}", *changes)
        records = Series(folder / "metrics.jsonl").records()
        shutil.rmtree(folder)  # it ends with a checkpoint and the model
        seconds = [record["step_ms"] / 1000 for record in records]
        return {"seconds": seconds[SKIPPED_STEPS:], "losses": [record["loss"] for record in records]}

    def theirs(self, name: str, environment: dict[str, str]) -> dict[str, Any]:
        """The same of Hugging Face's Trainer, and the type of its logits."""
        numbers, plan = self._settings.pretrain.optimizer, self._plan
        options = {
            "model_dir": self._scratch / "model",
            "samples_dir": self._scratch,
            "found": self._scratch / f"{name}.json",
            "output_dir": self._scratch / name,
            "deepspeed": self._scratch / "ds_config.json",
            "bf16": read_json(self._settings.deepspeed).get("bf16", {}).get("enabled", False),
            "max_steps": plan.num_steps,
            "per_device_train_batch_size": plan.micro_batch_size,
            "gradient_accumulation_steps": plan.accumulation_steps,
            "learning_rate": numbers.learning_rate,
            "lr_scheduler_type": "constant",
            "adam_beta1": numbers.betas[0],
            "adam_beta2": numbers.betas[1],
            "adam_epsilon": numbers.eps,
            "weight_decay": numbers.weight_decay,
            "max_grad_norm": numbers.gradient_clipping,
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
        }
        words = [word for option, value in options.items() for word in (f"--{option}", value)]
        _deepspeed(environment, "tools/benchmarks/_hf_trainer.py", *words)
        found = read_json(options["found"])
        return found | {"seconds": found["seconds"][SKIPPED_STEPS - 1 :]}  # the first has no end before it


def check_same(ours: dict[str, Any], theirs: dict[str, Any], logits: str) -> None:
    """Raise if the losses differ, step by step, or if theirs computes in another precision than ``logits``."""
    losses = (torch.tensor(side["losses"]) for side in (ours, theirs))
    torch.testing.assert_close(*losses, rtol=TOLERANCES[logits], atol=0)
    if theirs["logits"] != logits:
        raise ValueError(f"Trainer computes in {theirs['logits']}, not in {logits}; see its arguments")


def _write_samples(folder: Path, settings: RunSettings, plan: StagePlan) -> None:
    """Ours' samples without code-switching, for theirs, and ours' model before any training."""
    run = Run(settings, World(0, 1, torch.device("cpu")))
    run.new_model().save_pretrained(folder / "model")
    stream = run.stream("pretrain")
    samples = [stream[index] for index in range(plan.first_sample, plan.end_sample)]
    np.save(folder / "inputs.npy", np.stack([sample.input_ids for sample in samples]))
    np.save(folder / "targets.npy", np.stack([sample.targets for sample in samples]))


def _with_auto(config: dict[str, Any]) -> dict[str, Any]:
    """A file of ``ds_configs/`` with what Trainer fills in from its arguments."""
    derived = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    parameters = config.get("optimizer", {}).get("params", {}) | dict.fromkeys(
        ("lr", "betas", "eps", "weight_decay"), "auto"
    )
    return config | dict.fromkeys(derived, "auto") | {"optimizer": {"type": "AdamW", "params": parameters}}


def _deepspeed(environment: dict[str, str], script: str, *words: object) -> None:
    """Run a script with DeepSpeed's launcher on one rank, with no other settings of allocator and threads."""
    binaries = Path(sys.executable).parent
    launcher = [sys.executable, binaries / "deepspeed", "--num_gpus", 1, "--master_port", free_port()]
    kept = {key: value for key, value in os.environ.items() if key not in SAME_ENVIRONMENT}
    done = subprocess.run(
        [str(word) for word in (*launcher, script, *words)],
        cwd=ROOT,
        env=kept | {"PATH": f"{binaries}:{os.environ['PATH']}"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}\n{done.stdout[-4000:]}")


def main() -> None:
    """Print all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes of each side in each environment")
    parser.add_argument("--steps", type=int, default=14, help="steps of a process")
    parser.add_argument("changes", nargs="*", help="dotted.key=value, for the recipe")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure_trainer(Path(scratch), arguments.repeats, arguments.steps, arguments.changes)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(main)
