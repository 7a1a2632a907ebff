"""The benchmarks of training run, tiny, and both sides of each compute the same losses."""

from functools import partial

import pytest
import torch

from prealign_ds.files import read_json
from tools import bench
from tools.benchmarks import _workload, growth_of, step, trainer, zero
from tools.benchmarks._turns import take_turns

TINY = ["model.hidden_size=32", "model.num_heads=2", "data.sequence_length=32"]
TINY += ["pretrain.batch_tokens=256", "pretrain.micro_batch_size=2"]
SPREAD = {"min", "median", "max"}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(_workload, "DOCUMENTS", 60)
    monkeypatch.setattr(
        _workload, "VOCABULARY", 448
    )  # twice that is a multiple of 128: no padding, which ours leaves out


@pytest.mark.long
def test_step(tmp_path, monkeypatch):
    small, large = (["deepspeed=ds_configs/cpu.json", f"model.num_layers={layers}"] for layers in (1, 3))
    sizes = [step.Size("small", "quickstart", small, True), step.Size("large", "quickstart", large)]
    monkeypatch.setattr(step, "sizes", lambda: sizes)
    found = step.measure_step(tmp_path, 2, TINY)
    assert all(spread.keys() == SPREAD for spread in (found["step_vs_bare"], *found["codeswitch_cost"].values()))
    assert found["codeswitch_cost"].keys() == found["step_tokens_per_s"].keys() == {"small", "large"}
    assert found["data_wait_share"].keys() == {"1_workers", "2_workers"}
    assert all(0 < share["median"] < 1 for share in found["data_wait_share"].values())
    growth = found["growth"]["step"]
    parameters = [896 * 32 + 32 * 32 + layers * (12 * 32**2 + 13 * 32) + 2 * 32 for layers in (1, 3)]
    assert growth["sizes"] == parameters and growth["unit"] == "s"
    for tokens_per_s, seconds in zip(found["step_tokens_per_s"].values(), growth["cost"], strict=True):
        assert tokens_per_s["min"] <= 256 / seconds * 1.001 and tokens_per_s["max"] >= 256 / seconds * 0.999


def test_zero(tmp_path):
    found = zero.measure_zero(tmp_path, 1, TINY)
    assert found["zero_world_size"] == 2 and list(found["zero_vs_ddp"]) == ["zero_0", "zero_1", "zero_2", "zero_3"]
    for side, ratio in found["zero_vs_ddp"].items():
        seconds = found["zero_step_s"]
        assert ratio["median"] == pytest.approx(seconds["ddp"]["median"] / seconds[side]["median"])
    losses = {
        side: values for rank in (0, 1) for side, values in read_json(tmp_path / f"{rank}.json")["losses"].items()
    }
    assert losses["ddp"] == pytest.approx(losses["zero_3"], rel=_workload.LOSS_TOLERANCE)
    assert losses["ddp"][0] > losses["ddp"][-1]


@pytest.mark.long
def test_trainer(tmp_path):
    found = trainer.measure_trainer(tmp_path, 1, 7, [*TINY, "model.num_layers=2"])
    seconds = found["trainer_step_s"]
    for name in ("same_env", "as_started"):
        ours, theirs = seconds[f"ours_{name}"]["median"], seconds[f"theirs_{name}"]["median"]
        assert found[f"vs_hf_trainer_{name}"]["median"] == pytest.approx(theirs / ours)
    assert read_json(tmp_path / "theirs_check.json")["logits"] in trainer.TOLERANCES


def test_a_comparison_of_other_work_is_refused():
    theirs = {"losses": [7.0, 6.9], "logits": "torch.bfloat16"}
    trainer.check_same({"losses": [7.001, 6.899]}, theirs, "torch.bfloat16")
    with pytest.raises(AssertionError, match="not close"):
        trainer.check_same({"losses": [7.0, 6.5]}, theirs, "torch.bfloat16")
    with pytest.raises(AssertionError, match="not close"):
        trainer.check_same({"losses": [7.01, 6.89]}, theirs | {"logits": "torch.float32"}, "torch.float32")
    with pytest.raises(ValueError, match="computes in torch.float32"):
        trainer.check_same(theirs, theirs | {"logits": "torch.float32"}, "torch.bfloat16")


def test_turns_alternate_step_by_step():
    order = []
    sides = {name: partial(order.append, name) for name in ("ours", "theirs")}
    seconds = take_turns(sides, 3, 2, torch.device("cpu"))
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"] * 2
    assert [len(turns) for turns in seconds.values()] == [2, 2]


def test_growth_is_the_power_and_merges_by_cost():
    growth = growth_of([1, 2, 4], [3, 12, 48], "bytes")
    assert growth == {"sizes": [1, 2, 4], "cost": [3, 12, 48], "unit": "bytes", "exponent": pytest.approx(2)}
    found = {"growth": {"fetch": growth}, "speed": 1}
    bench.merge(found, {"growth": {"step": growth}, "speed": 2})
    bench.merge(found, {"size": 3})
    assert found == {"growth": {"fetch": growth, "step": growth}, "speed": 2, "size": 3}


def test_the_table_shows_rows_and_growth(capsys):
    spread = dict.fromkeys(SPREAD, 0.5)
    bench._show({"zero_vs_ddp": {"zero_1": spread}, "growth": {"step": growth_of([1000, 4000], [1.5, 3])}})
    out = capsys.readouterr().out
    assert "zero_vs_ddp.zero_1" in out and "1.5 s at 1,000" in out and " 0.50 " in out
