"""On a GPU: every configuration, kernel and size that is meant for one, in a few steps each."""

import subprocess
import time

import pytest
import torch
from building import build_data, read_lines, series, write_recipe
from conftest import REPOSITORY
from launching import deepspeed_command, kill, launch, start, usable_ds_configs
from safetensors.torch import load_file

from prealign_ds.files import read_json

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PRETRAIN = "launchers/pretrain.py"
PLAIN = "optimizer=torch normalization=torch lm_loss=plain compile=off attention=eager"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    return write_recipe(folder, deepspeed=str(REPOSITORY / "ds_configs/zero1_bf16.json"))


def kernels(words):
    return [f"kernels.{word}" for word in words.split()]


def test_every_configuration_trains_and_gives_fp32_weights(tmp_path):
    fp32 = REPOSITORY / "ds_configs/cpu_fp32.json"
    paths = [path for path in usable_ds_configs(tmp_path) if path.name != "cpu.json"]
    launch(1, "tests/distributed/worker_ds_configs.py", tmp_path / "losses.json", *paths, timeout=900)
    results = read_json(tmp_path / "losses.json")
    for path in paths:
        assert results[str(path)] == pytest.approx(results[str(fp32)], rel=0.02), path


@pytest.mark.parametrize(
    "choice",
    [
        "lm_loss=compiled",
        "lm_loss=chunked",
        "lm_loss=liger",
        "compile=blocks",
        "optimizer=deepspeed",
        "optimizer=apex",
        "tf32=on",
    ]
    + ["normalization=apex", "attention=sdpa", "attention=flash_attention_2"],
)
def test_a_kernel_trains_as_the_plain_ones_do(recipe, choice):
    plain = recipe.parent / "plain"
    launch(1, PRETRAIN, recipe, f"run_dir={plain}", *kernels(PLAIN))
    run = recipe.parent / choice
    done = launch(1, PRETRAIN, recipe, f"run_dir={run}", *kernels(PLAIN), *kernels(choice), check=False)
    if "cannot be used here" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    if choice == "compile=blocks":  # stage 1's word batches are not compiled, and it is refused there
        assert "word batches change their shape" in done.stderr
        stages = ["stages=[pretrain]"]
        launch(1, PRETRAIN, recipe, f"run_dir={plain}-2", *stages, *kernels(PLAIN))
        launch(1, PRETRAIN, recipe, f"run_dir={run}-2", *stages, *kernels(PLAIN), *kernels(choice))
        plain, run = recipe.parent / "plain-2", recipe.parent / f"{choice}-2"
    assert run.joinpath("model").is_dir(), done.stderr[-3000:]
    ours, theirs = (dict((row[:2], row[2]) for row in series(folder, "loss")) for folder in (run, plain))
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("config", ["zero1_bf16", "zero3_bf16", "zero2_offload_bf16", "zero1_fp16"])
def test_a_killed_run_ends_in_the_same_weights(recipe, config):
    runs = [recipe.parent / f"{config}-{name}" for name in ("straight", "killed")]
    choices = [f"deepspeed=ds_configs/{config}.json", "kernels.compile=off"]
    commands = [(PRETRAIN, recipe, f"run_dir={run}", *choices) for run in runs]
    launch(1, *commands[0])
    process = start(deepspeed_command(1, *commands[1]), 1, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ((runs[1] / "metrics.jsonl").exists() and ("pretrain", 5) in series(runs[1])):
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    kill(process)
    launch(1, *commands[1])
    straight, killed = (load_file(run / "model" / "model.safetensors") for run in runs)
    assert all(torch.allclose(killed[name], straight[name], atol=1e-5) for name in straight)


def test_five_steps_of_1_3b_on_80_gb(recipe):
    if torch.cuda.get_device_properties(0).total_memory < 75e9:
        pytest.skip("needs 80 GB")
    run = recipe.parent / "1.3b"
    model = "model={num_layers: 24, hidden_size: 2048, num_heads: 16, vocabulary_multiple: 131072}"
    batch = ["data.sequence_length=512", "pretrain.batch_tokens=16384", "pretrain.micro_batch_size=8"]
    length = ["stages=[pretrain]", "lm_tokens=81920", "evaluation.every_tokens=0", "checkpoint.every_tokens=0"]
    launch(1, PRETRAIN, recipe, f"run_dir={run}", model, *batch, *length, timeout=900)
    lines = read_lines(run / "metrics.jsonl")
    assert len(lines) == 5 and lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["skipped_steps"] == 0
