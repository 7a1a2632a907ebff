"""Losses and full gradients of stage 1 under every engine, written to FOLDER/RANKS-ACCUMULATION.safetensors.

Usage: worker_gradients.py FOLDER
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np
import torch
from conftest import gpt2_style, make_text
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.stage import AlignmentStage, JointModel
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import AlignSettings, ModelSettings, OptimizerSettings
from prealign_ds.model import build_model, model_config
from prealign_ds.training.engine import engine_config, read_ds_config, start_engine
from prealign_ds.training.environment import join_world, leave_world
from prealign_ds.training.kernels import Kernels
from prealign_ds.training.plan import StagePlan

LAYERS, SAMPLES, LENGTH = 2, 8, 24
DS_CONFIGS = Path(__file__).parent


def table():
    words = "the piano a well he plays she don't house street light old river bank shore music quiet naïve".split()
    pairs = [Pair(word, "de", word[::-1].capitalize(), "test") for word in words]
    pairs += [Pair(word, "ru", "р" + word, "test") for word in words[::2]]
    pairs += [Pair("bank", "de", "Ufer", "test"), Pair("shore", "de", "Ufer", "test")]
    return AlignmentTable.from_pairs(None, pairs)


def lm_batch(tokenizer, rank, world, accumulation, micro_step):
    """The rank's samples of a global batch; ranks differ in how many targets are ignored."""
    tokens = np.array(tokenizer.encode(make_text(600), add_special_tokens=False))[: SAMPLES * LENGTH + 1]
    inputs = tokens[:-1].reshape(SAMPLES, LENGTH)
    targets = tokens[1:].reshape(SAMPLES, LENGTH).copy()
    targets[0, 3:] = -100
    targets[1, :5] = -100
    micro = SAMPLES // world // accumulation
    begin = (micro_step * world + rank) * micro
    return torch.from_numpy(inputs[begin : begin + micro]), torch.from_numpy(targets[begin : begin + micro])


def backward(engine, tokenizer, plan, world, words, lm=True):
    total = 0.0
    for micro_step in range(plan.accumulation_steps):
        inputs, targets = lm_batch(tokenizer, world.rank, world.size, plan.accumulation_steps, micro_step)
        loss, _ = engine(
            inputs,
            targets,
            plan.loss_scale(SAMPLES) if lm else 0.0,
            words if micro_step == 0 else None,
            float(plan.accumulation_steps),
        )
        engine.backward(loss)
        total += float(loss.detach()) / plan.accumulation_steps / world.size
        if micro_step < plan.accumulation_steps - 1:
            engine.step()
    reduced = torch.tensor(total, dtype=torch.float64)
    torch.distributed.all_reduce(reduced)
    return reduced


def gradients(engine, module):
    found = {name: safe_get_full_grad(parameter) for name, parameter in module.model.named_parameters()}
    engine.step()  # the learning rate is 0: this only clears the gradients
    return {name: gradient.detach().float().clone() for name, gradient in found.items() if gradient is not None}


def layer_parts(name, architecture):
    """Which alignment layer a parameter proves: 0 for the input embedding, block l, L+1 for the output embedding."""
    if name.endswith(("wte.weight", "embed_tokens.weight", "embed_in.weight")):
        return 0
    if name.endswith(("lm_head.weight", "embed_out.weight")):
        return LAYERS + 1
    parts = name.split(".")
    return next((int(part) + 1 for part in parts if part.isdigit()), None)


def main():
    folder = Path(sys.argv[1])
    world = join_world()
    torch.use_deterministic_algorithms(True, warn_only=True)
    tokenizer = gpt2_style()
    for accumulation in range(1, world.size + 1):
        micro = SAMPLES // world.size // accumulation
        plan = StagePlan("align", 0, SAMPLES, SAMPLES, micro, accumulation, world.size, LENGTH)
        results = {}
        for combination in combinations(world.size, accumulation):
            key = "{}.tied={}.checkpointing={}.zero={}".format(*combination)
            results |= run_one(key, *combination, plan, world, tokenizer)
        if world.is_main:
            save_file(results, folder / f"{world.size}-{accumulation}.safetensors")


def combinations(ranks, accumulation):
    """(architecture, tied, checkpointing, ZeRO stage): one rank is what the others are compared with, under ZeRO 0."""
    pairs = [(True, False), (False, True)]
    if accumulation > 1:
        return [("gpt2", *pairs[zero % 2], zero) for zero in range(4)]
    every = [("gpt2", *pair, zero) for pair in pairs for zero in (range(4) if ranks > 1 else [0])]
    return every + [(name, False, True, 3 if ranks > 1 else 0) for name in ("llama", "gpt_neox")]


def run_one(key, architecture, tied, checkpointing, zero, plan, world, tokenizer):
    settings = ModelSettings(
        architecture=architecture,
        num_layers=LAYERS,
        hidden_size=32,
        num_heads=2,
        tied_embeddings=tied,
        activation_checkpointing=checkpointing,
    )
    model = build_model(model_config(settings, 32, len(tokenizer), tokenizer), settings, seed=0)
    assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules()) == checkpointing
    align = AlignSettings(words_per_step=9, translations_per_language=2)
    stage = AlignmentStage(table(), tokenizer, align, seed=3)
    module = JointModel(model, len(tokenizer), stage)
    optimizer = OptimizerSettings(learning_rate=1e-30, gradient_clipping=0.0)
    config = engine_config(read_ds_config(DS_CONFIGS / f"zero{zero}_fp32.json"), plan, optimizer, Kernels())
    engine = start_engine(module, config, Kernels())
    words = stage.batch(0, world.rank, world.size)
    assert world.size == 1 or len(set(words.counts)) > 1, "the shares of the ranks shall be uneven"
    results = {f"{key}.loss": backward(engine, tokenizer, plan, world, words)}
    results |= {f"{key}.{name}": value for name, value in gradients(engine, module).items()}
    for layer in range(LAYERS + 2 if plan.accumulation_steps == 1 else 0):
        stage.settings = align.model_copy(update={"layers": [layer]})
        backward(engine, tokenizer, plan, world, words, lm=False)
        found = gradients(engine, module)
        proof = 0 if tied and layer == LAYERS + 1 else layer
        norm = sum(float(g.norm()) for name, g in found.items() if layer_parts(name, architecture) == proof)
        results[f"{key}.norm_of_layer_{layer}"] = torch.tensor(norm)
    engine.destroy()
    return results


if __name__ == "__main__":
    main()
    leave_world()
