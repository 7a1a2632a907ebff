"""Layer weights, and the cosine between both losses' gradients, against backward passes of their own."""

import pytest
import torch
from conftest import make_text

from prealign_ds.alignment.conflict import GradientComparison, cosine_and_ratio, parameter_layers
from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.stage import AlignmentStage, JointModel
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import AlignSettings, ModelSettings
from prealign_ds.model import build_model, model_config

ARCHITECTURES = ["gpt2", "llama", "gpt_neox"]


@pytest.fixture(scope="module")
def stage(tokenizer):
    words = "the piano a well he plays she house street light".split()
    table = AlignmentTable.from_pairs(None, [Pair(word, "de", word[::-1], "test") for word in words])
    return AlignmentStage(table, tokenizer, AlignSettings(words_per_step=8, weight=0.7), seed=3)


def joint(tokenizer, stage, architecture="gpt2", lm_loss="plain", **settings):
    settings = ModelSettings(architecture=architecture, num_layers=2, hidden_size=32, num_heads=2, **settings)
    model = build_model(model_config(settings, 16, len(tokenizer), tokenizer), settings, seed=0)
    return JointModel(model, len(tokenizer), stage, lm_loss)


def text(tokenizer):
    tokens = torch.tensor(tokenizer.encode(make_text(100), add_special_tokens=False)[:65])
    return tokens[:-1].reshape(4, 16), tokens[1:].reshape(4, 16)


def gradients(module, *arguments):
    module.zero_grad()
    loss, log = module(*arguments)
    loss.backward()
    return [None if p.grad is None else p.grad.clone() for p in module.model.parameters()], log


@pytest.mark.parametrize("lm_loss", ["plain", "chunked"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_are_those_of_two_backward_passes_and_change_nothing(
    tokenizer, stage, architecture, tied, checkpointing, lm_loss
):
    settings = {"tied_embeddings": tied, "activation_checkpointing": checkpointing}
    module = joint(tokenizer, stage, architecture, lm_loss, **settings).train()
    inputs, targets = text(tokenizer)
    words, scale = stage.batch(0), 1 / 64
    plain, _ = gradients(module, inputs, targets, scale, words, 2.0)
    comparison = GradientComparison(module.model)
    both, _ = gradients(module, inputs, targets, scale, words, 2.0, comparison)
    log = comparison.products()
    assert all(torch.equal(a, b) for a, b in zip(plain, both, strict=True))
    lm, _ = gradients(module, inputs, targets, scale)
    alignment = [whole if own is None else whole - own for whole, own in zip(plain, lm, strict=True)]
    layers = parameter_layers(module.model)
    assert max(layers) == (2 if tied else 3)
    for layer in range(max(layers) + 1):
        mine = [n for n, other in enumerate(layers) if other == layer and lm[n] is not None]
        dot = sum(float((lm[n] * alignment[n]).sum()) for n in mine)
        norms = [sum(float(g[n].square().sum()) for n in mine) for g in (lm, alignment)]
        tolerance = {"rel": 1e-3, "abs": 1e-5 * (norms[0] * norms[1]) ** 0.5}
        assert float(log["gradient_dot"][layer]) == pytest.approx(dot, **tolerance)
        assert float(log["lm_gradient"][layer]) == pytest.approx(norms[0], rel=1e-4)
        assert float(log["alignment_gradient"][layer]) == pytest.approx(norms[1], rel=1e-3)


def test_cosine_and_ratio():
    assert cosine_and_ratio([3.0, 1.0], [1.0, 3.0], [9.0, 7.0]) == (0.5, 2.0)
    assert cosine_and_ratio([0.0], [0.0], [1.0]) == (0.0, 0.0)


def test_the_loss_of_a_layer_is_weighed(tokenizer, stage):
    module, words = joint(tokenizer, stage, tied_embeddings=False), stage.batch(0)

    def loss(layers):
        stage.settings = stage.settings.model_copy(update={"layers": layers})
        value, log = stage.loss(module.model, words)
        return float(value.detach()), log["alignment_loss"].tolist()

    _, by_layer = loss("all")
    weighed, shown = loss({3: 0.5, 0: 2.0, 2: 0.0})
    assert shown == [by_layer[0], by_layer[2], by_layer[3]], "the log has each layer's loss as it is"
    assert weighed == pytest.approx(0.7 * (2.0 * by_layer[0] + 0.5 * by_layer[3]))
    assert loss([1])[0] == pytest.approx(0.7 * by_layer[1])
    with pytest.raises(ValueError, match=r"align.layers: \[4\] are not layers of the model, which has 0 to 3"):
        loss({4: 1.0})
