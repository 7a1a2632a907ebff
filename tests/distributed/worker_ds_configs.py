"""Three steps with each file of ds_configs/ that this machine can run; prints the losses as JSON."""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
sys.argv = [argument for argument in sys.argv if not argument.startswith("--local_rank")]

import torch
from conftest import gpt2_style

from prealign_ds.alignment.stage import JointModel
from prealign_ds.config import KernelSettings, ModelSettings, OptimizerSettings
from prealign_ds.model import build_model, model_config
from prealign_ds.training.engine import engine_config, full_weights, read_ds_config, start_engine
from prealign_ds.training.environment import join_world, leave_world
from prealign_ds.training.kernels import Kernels, Place, choose_kernels
from prealign_ds.training.plan import StagePlan


def main():
    world = join_world()
    tokenizer = gpt2_style()
    plan = StagePlan("pretrain", 0, 12 * world.size, 4 * world.size, 2, 2, world.size, 16)
    results = {}
    for name in sys.argv[2:]:
        settings = ModelSettings(num_layers=2, hidden_size=32, num_heads=2)
        model = build_model(model_config(settings, 16, 400, tokenizer), settings, seed=0)
        module = JointModel(model, 400)
        ds_config = read_ds_config(Path("ds_configs") / name)
        kernels, _ = choose_kernels(KernelSettings(), Place.of(world.device, ds_config, model.config, 32, False))
        config = engine_config(ds_config, plan, OptimizerSettings(learning_rate=1e-2), kernels)
        engine = start_engine(module, config, kernels)
        inputs = torch.arange(32, device=world.device).reshape(2, 16)
        losses = []
        for _ in range(3):
            for _ in range(plan.accumulation_steps):
                loss, log = engine(inputs, inputs + 1, plan.loss_scale(plan.batch_samples))
                engine.backward(loss)
                engine.step()
            losses.append(float(log["lm_loss_sum"]) / 32)
        weights = full_weights(engine, model, keep=True)
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())
        assert len(weights) == len(list(model.named_parameters()))
        results[name] = losses
        engine.destroy()
    check_buffers(tokenizer, plan)
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))


def check_buffers(tokenizer, plan):
    """Rotary frequencies are fp32 under bf16, as they were before the engine."""
    settings = ModelSettings(architecture="llama", num_layers=1, hidden_size=32, num_heads=2)
    model = build_model(model_config(settings, 16, 400, tokenizer), settings, seed=0)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    ds_config = read_ds_config(Path("ds_configs/zero1_bf16.json"))
    config = engine_config(ds_config, plan, OptimizerSettings(learning_rate=1e-2), Kernels())
    engine = start_engine(JointModel(model, 400), config, Kernels())
    assert next(model.parameters()).dtype == torch.bfloat16 and before
    assert all(torch.equal(buffer.cpu(), before[name]) for name, buffer in model.named_buffers())
    engine.destroy()


if __name__ == "__main__":
    main()
    leave_world()
