"""The planner's memory beside a real engine's: model states and the peak of a training step, measured / planned.

    python tools/benchmarks/footprint.py             the cases below, as JSON
    python tools/benchmarks/footprint.py --only zero1

One rank on this machine's first device, the project's own engine. States are the bytes of all tensors alive between two
micro-steps; the peak is what forward, backward and optimizer step hold at most, from PyTorch's record of allocations
(``tools.benchmarks.alignment.peak_bytes``).
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

import torch

from prealign_ds.alignment.stage import JointModel
from prealign_ds.cli import run
from prealign_ds.config import ModelSettings, OptimizerSettings
from prealign_ds.files import read_json, write_json
from prealign_ds.model import build_model
from prealign_ds.planning.activations import MicroStep, micro_step_bytes
from prealign_ds.planning.footprint import empty_model, transformers_config
from prealign_ds.planning.zero import model_states, read_engine
from prealign_ds.training.engine import checkpoint_bytes, engine_config, read_ds_config, start_engine
from prealign_ds.training.environment import join_world, leave_world
from prealign_ds.training.kernels import Kernels
from prealign_ds.training.plan import StagePlan
from tools.benchmarks import spread
from tools.benchmarks.alignment import peak_bytes


@dataclass(frozen=True)
class Case:
    """A model, a batch and a ds_config."""

    engine: str = "cpu_fp32"
    architecture: str = "gpt2"
    num_layers: int = 4
    hidden_size: int = 256
    vocabulary: int = 4000
    micro_batch_size: int = 4
    sequence_length: int = 256
    checkpointing: bool = False

    @property
    def ds_config(self) -> Path:
        """The file in ds_configs/."""
        return REPOSITORY / "ds_configs" / f"{self.engine}.json"

    @property
    def settings(self) -> ModelSettings:
        """The ``model`` section."""
        return ModelSettings(
            architecture=self.architecture,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_heads=self.hidden_size // 64,
            activation_checkpointing=self.checkpointing,
        )


KERNELS = Kernels(activation="fused")
CASES = {
    "plain": Case(),
    "plain_wide": Case(hidden_size=320, num_layers=6),
    "checkpointing": Case(checkpointing=True),
    "checkpointing_wide": Case(hidden_size=320, num_layers=6, checkpointing=True),
    "large_vocabulary": Case(vocabulary=16000),
    "llama": Case(architecture="llama"),
    "autocast": Case("cpu"),
    "zero1": Case("zero1_bf16"),
    "zero2": Case("zero2_bf16"),
    "zero3": Case("zero3_bf16"),
}


def measure_footprint(scratch: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Each case's ``planned`` and ``measured`` bytes, and the ``ratio`` of the states and of the peak.

    Args:
        scratch: A folder for the child process's files.
        names: Of cases.
    """
    path = scratch / "measured.json"
    command = [sys.executable, __file__, "--worker", str(path), "--only", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = {}
    for name, measured in read_json(path).items():
        planned = planned_bytes(CASES[name])
        ratio = {kind: measured[kind] / planned[kind] for kind in ("states", "peak")}
        found[name] = {"planned": planned, "measured": measured, "ratio": ratio}
    return found


def planned_bytes(case: Case) -> dict[str, int]:
    """What the planner says, for one rank of one."""
    engine, settings = read_engine(case.ds_config), case.settings
    model = empty_model(settings, case.sequence_length, case.vocabulary)
    states = model_states(engine, [parameter.numel() for parameter in model.parameters()], 1)
    step = MicroStep(
        case.micro_batch_size,
        case.sequence_length,
        case.vocabulary,
        engine.weight_bytes,
        engine.autocast,
        case.checkpointing,
        keeps_gradients=engine.keeps_gradients,
        bucket_bytes=states.buckets,
    )
    held = micro_step_bytes(model.config, step)
    kept = states.weights + states.gradients + states.optimizer
    bucket = engine.zero.reduce_bucket_size * engine.weight_bytes if engine.stage == 3 else 0
    return {
        "states": kept + bucket,
        "peak": kept + max(states.buffers + sum(held.values()), states.after_backward),
        **held,
    }


def _worker(output: Path, names: list[str]) -> None:
    world = join_world()
    found = {}
    for name in names:
        found[name] = _measured(CASES[name], world.device, output.parent)
        write_json(output, found)
    leave_world()


def _measured(case: Case, device: torch.device, scratch: Path) -> dict[str, int]:
    size, before = case.micro_batch_size, _held([])  # held, so that no address is given out again
    plan = StagePlan("pretrain", 0, 6 * size, 2 * size, size, 2, 1, case.sequence_length)
    config = transformers_config(case.settings, case.sequence_length, case.vocabulary)
    model = build_model(config, case.settings, seed=0)
    KERNELS.apply(model)
    module = JointModel(model, case.vocabulary)
    ds_config = read_ds_config(case.ds_config)
    config = engine_config(ds_config, plan, OptimizerSettings(learning_rate=1e-3), KERNELS)
    engine = start_engine(module, config, KERNELS)
    ids = torch.randint(0, case.vocabulary, (size, case.sequence_length), device=device)

    def micro_steps(number: int) -> None:
        for _ in range(number):
            loss, _ = engine(ids, ids, 1e-4)
            engine.backward(loss)
            engine.step()

    micro_steps(3)  # into the second step: moments and accumulated gradients are there
    after = _held([p.grad for p in module.parameters() if p.grad is not None])
    states = sum(storage.nbytes() for address, storage in after.items() if address not in before)
    del after
    peak = states + peak_bytes(partial(micro_steps, 1), device, scratch)
    sizes = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())
    weight_bytes = next(module.parameters()).element_size()
    checkpoint = checkpoint_bytes(sizes, weight_bytes, engine.zero_optimization_stage())
    result = {"states": states, "peak": peak, "checkpoint": checkpoint}
    engine.destroy()
    return result


def _held(unseen: list[torch.Tensor]) -> dict[int, torch.UntypedStorage]:
    """The memory of all tensors alive, by address; ``unseen`` are those that no Python object stands for."""
    gc.collect()
    tensors = [*filter(_is_tensor, gc.get_objects()), *unseen]
    return {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)}


def _is_tensor(thing: Any) -> bool:
    return issubclass(type(thing), torch.Tensor) and not thing.is_meta and thing.layout == torch.strided


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1, help="not used: a step allocates the same every time")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _worker(arguments.worker, arguments.only)
        return
    with tempfile.TemporaryDirectory() as scratch:
        cases = measure_footprint(Path(scratch), arguments.only)
    figures: dict[str, Any] = {
        f"footprint_{kind}_vs_planned": spread([case["ratio"][kind] for case in cases.values()])
        for kind in ("states", "peak")
    }
    print("\n" + json.dumps(figures | {"footprint": cases}, indent=2))


if __name__ == "__main__":
    run(main)
