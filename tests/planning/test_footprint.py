"""The planner's memory: against DeepSpeed's estimators, against measured steps, and on the shipped recipes."""

from dataclasses import replace

import pytest
from conftest import REPOSITORY
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from prealign_ds.config import ModelSettings
from prealign_ds.files import write_json
from prealign_ds.planning import activations
from prealign_ds.planning.activations import MicroStep, WordShape, micro_step_bytes
from prealign_ds.planning.footprint import (
    GIB,
    Machine,
    empty_model,
    look_at_data,
    obstacles,
    stage_memories,
    transformers_config,
)
from prealign_ds.planning.proposals import _changed, propose
from prealign_ds.planning.zero import gathered_elements, model_states, read_engine
from prealign_ds.recipe import load_settings
from prealign_ds.training.gpus import GPUS, gpu_named, peak_flops
from tools.benchmarks.footprint import measure_footprint

RECIPES = sorted((REPOSITORY / "launchers/recipes").glob("*.yaml"))
LARGE = REPOSITORY / "launchers/recipes/en_clone_1.3b.yaml"
SMALL = ModelSettings(num_layers=4, hidden_size=64, num_heads=2)
SIZES = [262_144_000, *[4 * 2048**2] * 72, *[2048] * 200]
NUMBER = sum(SIZES)


def engine(name, **zero):
    found = read_engine(REPOSITORY / f"ds_configs/{name}.json")
    return replace(found, zero=found.zero.model_copy(update=zero))


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("world", [1, 8, 64])
def test_zero2_states_are_deepspeeds_estimate_without_the_second_copy_of_gradients(world):
    states = model_states(engine("zero2_bf16"), SIZES, world)
    _, estimate = estimate_zero2_model_states_mem_needs(NUMBER, 1, world, cpu_offload=False)
    ours = states.weights + states.gradients + states.optimizer
    # The estimator counts the rank's bf16 gradients beside the fp32 ones; 0.19.8 adds them up in place.
    assert ours == pytest.approx(estimate - 2 * NUMBER / world, rel=1e-4)


@pytest.mark.parametrize("world", [1, 8, 64])
def test_zero3_states_are_deepspeeds_estimate(world):
    states = model_states(engine("zero3_bf16"), SIZES, world)
    _, estimate, largest = estimate_zero3_model_states_mem_needs(NUMBER, max(SIZES), 1, world, cpu_offload=False)
    assert states.weights + states.gradients + states.optimizer == pytest.approx(estimate - largest, rel=1e-4)
    # It leaves out buckets, and that a small model stays gathered; only then does it hold that ours is larger.
    assert states.buffers > largest / 2


def test_whole_fp32_gradients_of_bf16_zero1_are_counted():
    states = model_states(engine("zero1_bf16"), SIZES, 8)
    assert (states.weights, states.gradients) == (2 * NUMBER, 6 * NUMBER)
    assert states.optimizer == pytest.approx(12 * NUMBER / 8, rel=1e-6)
    half = model_states(engine("zero1_fp16"), SIZES, 8)
    assert half.gradients == 2 * NUMBER and half.buckets >= 2 * 100_000_000 * 2


def test_offload_moves_the_optimizer_to_the_host(tmp_path):
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    write_json(tmp_path / "own.json", {"zero_optimization": zero, "bf16": {"enabled": True}})
    states = model_states(read_engine(tmp_path / "own.json"), SIZES, 4)
    assert states.weights == states.gradients == states.optimizer == 0
    assert states.host == pytest.approx((2 + 12 + 2 + 4) * NUMBER / 4, rel=1e-4)
    zero["offload_optimizer"] = {"device": "nvme", "nvme_path": str(tmp_path)}
    write_json(tmp_path / "own.json", {"zero_optimization": zero, "bf16": {"enabled": True}})
    assert model_states(read_engine(tmp_path / "own.json"), SIZES, 4).disk == pytest.approx(3 * NUMBER, rel=1e-4)


def test_zero3_keeps_a_small_model_gathered():
    assert gathered_elements(engine("zero3_bf16"), SIZES) == 5e8 + 5e7 + max(SIZES)
    assert gathered_elements(engine("zero3_bf16"), [10**6] * 10) == 10**7


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_parameters_are_counted_exactly(recipe):
    settings = load_settings(recipe)
    data = look_at_data(settings, 64_000)
    assert data.vocabulary == 64_000 * (2 if settings.has_clone else 1)
    layers, width, length = settings.model.num_layers, settings.model.hidden_size, settings.data.sequence_length
    gated = -(-width * 8 // 3)
    others, block = {  # beside the look-up table, and in a block
        "gpt2": (length * width + 2 * width, 12 * width**2 + 13 * width),
        "llama": (width, 4 * width**2 + 3 * width * gated + 2 * width),
    }[settings.model.architecture]
    tables = (1 if settings.model.tied_embeddings else 2) * data.vocabulary * width
    model = empty_model(settings.model, length, data.vocabulary)
    assert sum(p.numel() for p in model.parameters()) == tables + others + layers * block


@pytest.mark.parametrize(("weight_bytes", "autocast"), [(2, False), (4, True), (4, False)])
def test_a_few_chunks_of_the_loss_hold_what_all_of_them_hold(monkeypatch, weight_bytes, autocast):
    config = transformers_config(SMALL, 96, 5_000)
    step = MicroStep(3, 96, 5_000, weight_bytes, autocast, lm_loss="chunked")
    few = micro_step_bytes(config, step)
    monkeypatch.setattr(activations, "_CHUNKS", 1_000_000)
    assert micro_step_bytes(config, step) == few


def test_planned_memory_is_that_of_measured_steps(tmp_path):
    names = ["plain_wide", "checkpointing", "zero2"]  # the others: tools/bench.py
    found = measure_footprint(tmp_path, names)
    assert set(found) == set(names)
    for name, case in found.items():
        assert case["ratio"]["states"] == pytest.approx(1, abs=0.01), name
        assert 0.9 <= case["ratio"]["peak"] <= 1.05, name


def test_what_saves_memory_saves_it():
    config = transformers_config(SMALL, 128, 8000)
    step = MicroStep(16, 128, 8000)
    plain = micro_step_bytes(config, step)
    assert plain["logits"] >= 16 * 128 * 8000 * (2 + 4 + 4) and plain["alignment"] == plain["buckets"] == 0
    chunked = micro_step_bytes(config, replace(step, lm_loss="chunked"))
    assert sum(chunked.values()) < sum(plain.values()) / 2
    again = micro_step_bytes(config, replace(step, lm_loss="chunked", checkpointing=True))
    assert again["activations"] < chunked["activations"] / 2
    forward = micro_step_bytes(config, replace(step, training=False))
    assert 16 * 128 * 8000 * 2 <= sum(forward.values()) < sum(plain.values())
    after = micro_step_bytes(config, replace(step, lm_loss="chunked", bucket_bytes=10**9))
    assert after["buckets"] == 10**9


def test_words_cost_their_rows_and_a_second_set_of_gradients():
    config = transformers_config(SMALL, 128, 1000)
    without = micro_step_bytes(config, MicroStep(1, 128, 1000))
    few = micro_step_bytes(config, MicroStep(1, 128, 1000, words=WordShape(((8, 2), (4, 4)), 0)))
    many = micro_step_bytes(config, MicroStep(1, 128, 1000, words=WordShape(((800, 2), (400, 4)), 10**6)))
    gradients = 2 * sum(p.numel() for p in empty_model(SMALL, 128, 1000).parameters())
    assert gradients / 2 < few["alignment"] + few["activations"] - without["activations"]
    # The states of all six layers in fp32 and their gradients, less those of the few rows.
    assert many["alignment"] - few["alignment"] >= 2 * 6 * 4 * 1188 * 64


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_fits_sensible_hardware(recipe):
    settings = load_settings(recipe)
    machine = Machine(
        gpu_named("H100"), 1, 1 if recipe.stem.startswith(("quickstart", "five", "micro", "small")) else 8
    )
    memories = stage_memories(settings, machine, look_at_data(settings))
    assert [memory.plan.name for memory in memories] == ["align", "pretrain"]
    assert obstacles(settings, machine, memories) == []
    for memory in memories:
        assert 0 < memory.peak < memory.needed < 79 * GIB
        assert memory.parts["alignment"] > 0 or memory.plan.name == "pretrain"


def test_what_does_not_fit_is_refused_and_what_is_proposed_fits():
    overrides = ["pretrain.micro_batch_size=16", "align.micro_batch_size=16", "model.activation_checkpointing=false"]
    settings, machine = load_settings(LARGE, overrides), Machine(gpu_named("V100"), 1, 8)
    data = look_at_data(settings)
    reasons = obstacles(settings, machine, stage_memories(settings, machine, data))
    assert any("does not compute in bf16" in reason for reason in reasons)
    assert any(reason.startswith("pretrain: ") and "31.7 are there" in reason for reason in reasons)
    proposals = propose(settings, machine, data, most=2)
    assert len(proposals) == 2
    for proposal in proposals:
        changed = load_settings(LARGE, [*overrides, *proposal.overrides])
        assert changed == _changed(settings, proposal.overrides)
        memories = stage_memories(changed, proposal.machine, data)
        assert obstacles(changed, proposal.machine, memories) == []


def test_gpus_are_found_by_name():
    assert gpu_named("h100") is gpu_named("H100-80")
    with pytest.raises(ValueError, match="--gpus A100: choose one of A100-40, A100-80"):
        gpu_named("A100")
    with pytest.raises(ValueError, match="--gpus K80: choose one of V100-32"):
        gpu_named("K80")
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and peak_flops("NVIDIA GeForce RTX 4090") == 165e12
    assert peak_flops("Some other GPU") is None
    assert all(gpu.mfu[0] < gpu.mfu[1] < 1 and gpu.memory_gib < int(gpu.name.split("-")[-1]) for gpu in GPUS)
