"""The planner's FLOPs, traffic, time and disk, with known answers."""

import pytest
from conftest import REPOSITORY

from prealign_ds.planning.footprint import Machine, look_at_data
from prealign_ds.planning.forecast import forecast_disk, forecast_stages, model_costs, step_traffic
from prealign_ds.planning.zero import read_engine
from prealign_ds.recipe import load_settings
from prealign_ds.training.gpus import gpu_named

RECIPE = REPOSITORY / "launchers/recipes/en_clone_150m.yaml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def forecasts(*overrides, nodes=1, network=None):
    settings, machine = load_settings(RECIPE, list(overrides)), Machine(gpu_named("A100-80"), nodes, 8)
    data = look_at_data(settings, 64_000)
    return forecast_stages(settings, machine, data, model_costs(settings, data.vocabulary), network)


def test_flops_of_a_step():
    align, pretrain = forecasts()
    blocks = 12 * (12 * 1024**2 + 13 * 1024) + 2 * 1024
    per_token = 6 * (blocks + 128_000 * 1024) + 12 * 12 * 1024 * 1024
    assert pretrain.lm_flops == per_token * 1_048_576 and pretrain.word_flops == pretrain.recomputed_flops == 0
    assert align.lm_flops == per_token * 131_072
    assert align.word_flops == 6 * blocks * 13_310 + 6 * 14 * 1024 * 4096**2
    assert align.word_share == align.word_flops / (align.word_flops + align.lm_flops)
    again = forecasts("model.activation_checkpointing=true")[1]
    assert again.recomputed_flops == (2 * blocks + 4 * 12 * 1024 * 1024) * 1_048_576


def test_time_is_flops_over_the_stated_share_of_the_peak():
    _, pretrain = forecasts()
    fast, slow = pretrain.step_seconds
    assert fast == pytest.approx(pretrain.lm_flops / (0.55 * 312e12 * 8))
    assert slow == pytest.approx(pretrain.lm_flops / (0.35 * 312e12 * 8) + pretrain.traffic_seconds)
    assert pretrain.hours[1] == pytest.approx(slow * pretrain.plan.num_steps / 3600)
    assert pretrain.tokens_per_s == (1_048_576 / slow, 1_048_576 / fast)
    (_, near), (_, far) = forecasts(nodes=2), forecasts(nodes=2, network=1e9)
    assert far.traffic_seconds == pytest.approx(25 * near.traffic_seconds)
    assert far.step_seconds[0] == pytest.approx(far.traffic_seconds), "nothing hides so much traffic"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu_fp32", {"gradients": 2 * 4}),
        ("zero1_bf16", {"gradients": 2 * 4, "weights": 2}),
        ("zero2_bf16", {"gradients": 4 * 2 * 2, "weights": 2}),
        ("zero3_bf16", {"gradients": 4 * 2, "weights": 4 * 2}),
    ],
)
def test_traffic_with_four_micro_steps(name, expected):
    found = step_traffic(read_engine(REPOSITORY / f"ds_configs/{name}.json"), (10**6, 10**5), 8, 4)
    assert found == pytest.approx({kind: number * 1_100_000 * 7 / 8 for kind, number in expected.items()})


def test_zero3_gathers_what_it_has_not_kept_again():
    found = step_traffic(read_engine(REPOSITORY / "ds_configs/zero3_bf16.json"), (10**8,) * 20, 8, 1)
    kept = (5e8 + 5e7 + 1e8) / 2e9
    assert found["weights"] == pytest.approx((2 - kept) * 2 * 2e9 * 7 / 8)


def test_word_rows_travel_once_a_step():
    align, pretrain = forecasts()
    assert align.traffic["word rows"] == 7 / 8 * 4 * 14 * 4096 * 1024 and "word rows" not in pretrain.traffic


def test_disk():
    settings, machine = load_settings(RECIPE, ["checkpoint.keep_every_tokens=1B"]), Machine(gpu_named("H100"), 1, 8)
    costs = model_costs(settings, 128_000)
    disk = forecast_disk(settings, machine, costs)
    assert disk.checkpoint == 14 * costs.num_parameters and disk.model == 4 * costs.num_parameters
    assert disk.most == 2 + 9 + 1
