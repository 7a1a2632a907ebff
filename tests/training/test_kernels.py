"""Each implementation gives what the plain one gives, and the choice among them has its reasons."""

import os
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from prealign_ds.alignment.stage import JointModel
from prealign_ds.config import KernelSettings, ModelSettings
from prealign_ds.model import build_model, model_config, transformer_blocks
from prealign_ds.training import kernels
from prealign_ds.training.kernels import Kernels, Place, choose_kernels

CPU = Place("cpu", (0, 0), True, 0, "", False, 2**20, True)
GPU = replace(CPU, device="cuda", capability=(9, 0), zero_stage=1, logits_bytes=2**33)
ARCHITECTURES = ["gpt2", "llama", "gpt_neox"]
VOCABULARY = 390


def joint_model(tokenizer, architecture, lm_loss, chosen=None, **settings):
    settings = ModelSettings(architecture=architecture, num_layers=2, hidden_size=32, num_heads=2, **settings)
    model = build_model(model_config(settings, 16, len(tokenizer), tokenizer), settings, seed=0)
    (chosen or Kernels()).apply(model)
    return JointModel(model, VOCABULARY, lm_loss=lm_loss)


def batch():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(0, VOCABULARY, (2, 3, 16), generator=generator)
    targets[0, 5:] = -100
    targets[2] = -100  # the place of a sample that is missing
    return inputs, targets


def loss_and_gradients(module, bf16=False):
    inputs, targets = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, log = module(inputs, targets, 0.5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    with torch.no_grad():
        assert module(inputs, targets, 0.5)[0] == pytest.approx(float(loss), rel=0.02 if bf16 else 1e-5)
    assert loss.dtype == torch.float32 and int(log["num_targets"]) == 21
    return float(loss.detach()), gradients


def assert_equal_work(tokenizer, architecture, lm_loss, bf16, chosen=None, **settings):
    plain, expected = loss_and_gradients(joint_model(tokenizer, architecture, "plain", **settings), bf16)
    loss, found = loss_and_gradients(joint_model(tokenizer, architecture, lm_loss, chosen, **settings), bf16)
    assert loss == pytest.approx(plain, rel=2e-3 if bf16 else 1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        difference = (gradient - expected[name]).norm() / expected[name].norm().clamp_min(1e-6)
        assert difference < (2e-2 if bf16 else 1e-5), name


@pytest.mark.skipif(not hasattr(nn.functional, "linear_cross_entropy"), reason="needs PyTorch 2.13")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_chunked_loss_is_the_plain_one(tokenizer, architecture, tied, bf16):
    assert_equal_work(tokenizer, architecture, "chunked", bf16, tied_embeddings=tied)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_compiled_loss_is_the_plain_one(tokenizer, bf16):
    assert_equal_work(tokenizer, "gpt2", "compiled", bf16)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="on a CPU it takes TRITON_INTERPRET=1")
def test_ligers_loss_is_the_plain_one(tokenizer):
    pytest.importorskip("liger_kernel", reason="needs the package liger-kernel")
    assert_equal_work(tokenizer, "gpt2", "liger", False)


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_give_what_plain_ones_give(tokenizer, checkpointing):
    compiled = Kernels(compile="blocks")
    assert_equal_work(tokenizer, "gpt2", "plain", False, compiled, activation_checkpointing=checkpointing)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_blocks_of_a_model_are_found(tokenizer, architecture):
    blocks = transformer_blocks(joint_model(tokenizer, architecture, "plain").model)
    assert len(blocks) == 2 and sum(p.numel() for p in blocks.parameters()) > 2 * 8 * 32 * 32


def test_apex_norms_keep_names_weights_and_results(tokenizer, monkeypatch):
    """A class of apex's shape stands for apex, which installs from source alone."""

    class FusedLayerNorm(nn.LayerNorm):
        pass

    apex = types.ModuleType("apex.normalization")
    apex.FusedLayerNorm = FusedLayerNorm
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.normalization", apex)
    chosen = Kernels(normalization="apex")
    assert_equal_work(tokenizer, "gpt2", "plain", False, chosen)
    model = joint_model(tokenizer, "gpt2", "plain", chosen).model
    assert sum(isinstance(part, FusedLayerNorm) for part in model.modules()) == 2 * 2 + 1


@pytest.mark.parametrize("bf16", [False, True])
def test_one_operation_gives_what_gpt2s_chain_of_them_gives(tokenizer, bf16):
    chosen = Kernels(activation="fused")
    assert_equal_work(tokenizer, "gpt2", "plain", bf16, chosen)
    model = joint_model(tokenizer, "gpt2", "plain", chosen).model
    assert sum(isinstance(part, nn.GELU) for part in model.modules()) == 2
    assert model.config.activation_function == "gelu_new"  # what is saved stays GPT-2's


@pytest.fixture
def packages(monkeypatch):
    """What is installed, and whether DeepSpeed's Adam compiles."""
    installed = {"triton", "liger_kernel"}
    monkeypatch.setattr(kernels, "_installed", lambda name: name in installed)
    monkeypatch.setattr(kernels, "adam_obstacle", lambda offload: "")
    return installed


def choose(place, **settings):
    return choose_kernels(KernelSettings(**settings), place)


def test_a_cpu_takes_what_needs_no_compiler(packages):
    assert choose(CPU)[0] == Kernels("sdpa", "torch", "torch", "fused", "plain", "off", "off")
    assert choose(replace(CPU, logits_bytes=2**33))[0].lm_loss == "chunked"


def test_a_gpu_takes_fused_kernels_as_far_as_they_are_there(packages, monkeypatch):
    assert choose(GPU)[0] == Kernels("sdpa", "deepspeed", "torch", "fused", "liger", "blocks", "off")
    assert choose(replace(GPU, memory=80 * 2**30))[0].lm_loss == "compiled"
    assert "lm_loss: liger; not compiled: 8.0 GiB of logits and their gradient are much of this GPU's 40" in "".join(
        choose(replace(GPU, memory=40 * 2**30))[1]
    )
    packages -= {"triton", "liger_kernel"}
    packages |= {"apex.normalization", "apex.optimizers"}
    assert choose(GPU)[0] == Kernels("sdpa", "deepspeed", "apex", "fused", "chunked", "off", "off")
    monkeypatch.setattr(kernels, "adam_obstacle", lambda offload: "no nvcc")
    chosen, lines = choose(GPU)
    assert chosen.optimizer == "apex"
    assert "optimizer: apex; not deepspeed: no nvcc" in lines
    packages.clear()
    assert choose(GPU)[0].optimizer == "torch"


def test_what_a_stage_cannot_compile_is_not_compiled(packages):
    assert choose(replace(GPU, zero_stage=3))[0].compile == "off"
    assert choose(replace(GPU, word_batches=True))[0].compile == "off"


def test_offload_has_one_optimizer(packages):
    place = replace(GPU, offload="nvme")
    assert choose(place)[0].optimizer == "deepspeed"
    with pytest.raises(ValueError, match="kernels.optimizer: torch cannot be used here: DeepSpeed offloads to nvme"):
        choose(place, optimizer="torch")


def test_a_model_without_gpt2s_gelu_keeps_what_it_has(packages):
    assert choose(replace(CPU, chained_gelu=False))[0].activation == "plain"
    with pytest.raises(ValueError, match="kernels.activation: fused cannot be used here: this model has no gelu_new"):
        choose(replace(CPU, chained_gelu=False), activation="fused")


def test_a_model_with_another_head_keeps_its_logits(packages):
    chosen, lines = choose(replace(GPU, linear_head=False))
    assert chosen.lm_loss == "plain"
    assert any("not chunked: this model's logits are not the output embedding's alone" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization": "apex"}, "kernels.normalization: apex cannot be used here: NVIDIA apex is not installed"),
        (
            {"tf32": "on"},
            "kernels.tf32: on cannot be used here: it needs an NVIDIA GPU from Ampere on; choose auto, off",
        ),
        ({"attention": "flash_attention_2"}, "flash_attention_2 cannot be used here: it needs bf16 or fp16"),
    ],
)
def test_what_is_forced_and_cannot_be_is_refused_with_the_reason(packages, settings, message):
    with pytest.raises(ValueError, match=message):
        choose(CPU, **settings)


def test_what_is_forced_is_taken_and_said(packages):
    chosen, lines = choose(CPU, attention="eager", lm_loss="chunked", compile="blocks")
    assert (chosen.attention, chosen.lm_loss, chosen.compile) == ("eager", "chunked", "blocks")
    assert any(line.startswith("attention: eager (forced)") for line in lines)


def test_the_place_is_read_from_the_configuration(tokenizer):
    config = model_config(ModelSettings(num_layers=1, hidden_size=32, num_heads=2), 16, 400, tokenizer)
    ds_config = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": True}}
    place = Place.of(torch.device("cpu"), ds_config, config, 64, word_batches=True)
    assert place == Place("cpu", (0, 0), True, 2, "cpu", True, 4 * 64 * 512, True)
    config.final_logit_softcapping = 30.0
    assert not Place.of(torch.device("cpu"), {}, config, 64, False).linear_head
