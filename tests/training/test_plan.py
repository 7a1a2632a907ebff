"""Batch arithmetic and learning rates."""

import pytest

from prealign_ds.config import OptimizerSettings, RunSettings
from prealign_ds.training.plan import StagePlan, learning_rate, plan_stages


def settings(**changes):
    values = {
        "run_dir": "r",
        "deepspeed": "d.json",
        "lm_tokens": 80_000,
        "data": {
            "tokenizer": "t",
            "sequence_length": 100,
            "corpora": [{"name": "en", "path": "p", "language": "en"}],
        },
        "table": {"path": "t.parquet"},
        "align": {"batch_tokens": 400, "budget_share": 0.1, "micro_batch_size": 2},
        "pretrain": {"batch_tokens": 1600, "micro_batch_size": 4},
    }
    return RunSettings.model_validate(values | changes)


def test_stages_share_one_row_of_samples():
    align, pretrain = plan_stages(settings(), world_size=2)
    assert (align.first_sample, align.num_steps, align.batch_samples, align.accumulation_steps) == (0, 20, 4, 1)
    assert (pretrain.first_sample, pretrain.num_steps, pretrain.accumulation_steps) == (80, 45, 2)
    assert pretrain.end_sample * 100 == 80_000


def test_joint_training_reads_the_same_number_of_samples():
    (joint,) = plan_stages(settings(stages=["pretrain"]), world_size=1)
    assert (joint.first_sample, joint.end_sample) == (0, plan_stages(settings(), 1)[1].end_sample)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pretrain": {"batch_tokens": 1650}},
            "not a multiple of data.sequence_length 100; the nearest are 1600 or 1700",
        ),
        ({"pretrain": {"batch_tokens": 50}}, "the nearest are 100"),
        (
            {"pretrain": {"batch_tokens": 1600, "micro_batch_size": 3}},
            r"nearest batch_tokens are 1200 or 1800, or .*\[1, 2, 4, 8\]",
        ),
        ({"lm_tokens": 1000}, "too few for the stages"),
    ],
)
def test_impossible_batches_name_the_nearest_valid_ones(change, message):
    with pytest.raises(ValueError, match=message):
        plan_stages(settings(**change), world_size=2)


def plan(steps):
    return StagePlan("pretrain", 0, 10 * steps, 10, 10, 1, 1, 10)


def test_learning_rate_warms_up_decays_to_the_floor_and_stays_there():
    optimizer = OptimizerSettings(
        learning_rate=1.0, final_learning_rate=0.1, warmup_tokens=1000, decay_tokens=5000, schedule="cosine"
    )
    rates = [learning_rate(optimizer, plan(80), step * 100) for step in range(80)]
    assert rates[:10] == sorted(rates[:10]) and 0 < rates[0] < 0.1 and rates[10] == 1.0
    assert rates[10:50] == sorted(rates[10:50], reverse=True)
    assert rates[30] == pytest.approx(0.55) and rates[50:] == [pytest.approx(0.1)] * 30


def test_learning_rate_with_absolute_tokens_does_not_depend_on_the_length_of_the_run():
    optimizer = OptimizerSettings(learning_rate=1.0, warmup_tokens=1000, decay_tokens=5000)
    assert [learning_rate(optimizer, plan(40), 100 * s) for s in range(40)] == [
        learning_rate(optimizer, plan(90), 100 * s) for s in range(40)
    ]
