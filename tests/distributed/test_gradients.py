"""Contrastive and LM gradients do not depend on the number of ranks, on the ZeRO stage, or on accumulation."""

import re

import pytest
import torch
from launching import launch_each
from safetensors.torch import load_file

LAYERS = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    launch_each(*((ranks, "tests/distributed/worker_gradients.py", folder) for ranks in (1, 2)))
    return {name: load_file(folder / "{}-{}.safetensors".format(*name)) for name in ((1, 1), (2, 1), (2, 2))}


def relative_difference(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


@pytest.mark.parametrize("run", [(2, 1), (2, 2)], ids=["two ranks", "two ranks, accumulation"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_losses_and_gradients_equal_those_of_one_rank_with_all_rows(results, run, zero):
    compared = 0
    for key, value in results[run].items():
        if f"zero={zero}" in key and "norm_of_layer" not in key:
            reference = results[1, 1][re.sub(r"zero=\d", "zero=0", key)]
            assert relative_difference(value, reference) < 1e-5, key
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(("ranks", "engines"), [(1, 2 + 2), (2, 2 * 4 + 2)])
def test_every_layer_gets_a_gradient_under_every_engine(results, ranks, engines):
    norms = {key: float(value) for key, value in results[ranks, 1].items() if "norm_of_layer" in key}
    assert len(norms) == engines * (LAYERS + 2)
    assert min(norms.values()) > 1e-6, min(norms, key=norms.get)


def test_layers_get_the_same_gradient_under_every_engine(results):
    for key, value in results[2, 1].items():
        if "norm_of_layer" in key:
            assert torch.isclose(value, results[1, 1][re.sub(r"zero=\d", "zero=0", key)], rtol=1e-4), key
