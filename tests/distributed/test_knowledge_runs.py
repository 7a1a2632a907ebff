"""Facts in real runs: the same samples and the same answers for any ranks, ZeRO stage and interruption."""

import subprocess
import time

import pytest
from building import build_data, read_lines, series, write_recipe
from launching import forked_command, kill, launch_each, start

PRETRAIN = "launchers/pretrain.py"
KNOWLEDGE = {"period_tokens": 96 * 140, "start_tokens": 96 * 30, "facts": 4, "frequencies": [1, 4]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    write_recipe(
        folder,
        sequence_length=96,
        knowledge=KNOWLEDGE,
        lm_tokens=96 * 340,
        pretrain={"batch_tokens": 96 * 24, "micro_batch_size": 12, "optimizer": {"learning_rate": 0.003}},
        align={"budget_share": 0.3, "words_per_step": 16, "micro_batch_size": 12},
        evaluation={"every_tokens": 96 * 96},
        checkpoint={"every_tokens": 96 * 72},
    )
    return folder


def evaluations(run):
    return {(r["stage"], r["step"]): r for r in read_lines(run / "eval.jsonl")}


def test_two_ranks_under_zero3_with_a_kill_in_a_period_find_what_one_rank_finds(data):
    one, two = data / "one", data / "two"
    words = [2, PRETRAIN, data / "recipe.yaml", f"run_dir={two}", "deepspeed=tests/distributed/zero3_fp32.json"]
    process = start(forked_command(*words), 2, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ((two / "metrics.jsonl").exists() and ("pretrain", 5) in series(two)):
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.05)
    kill(process)
    launch_each(words, (1, PRETRAIN, data / "recipe.yaml", f"run_dir={one}"))

    ours, theirs = evaluations(one), evaluations(two)
    assert ours.keys() == theirs.keys()
    # Period 0 ends with sample 170, in step 3 of stage 2 (samples 150 to 173); period 1 with sample 310, in step 9.
    asked = {place: list(record["knowledge"]) for place, record in ours.items() if "knowledge" in record}
    assert asked == {("pretrain", 3): ["0"], ("pretrain", 9): ["1"]}
    assert set(ours["pretrain", 4]) >= {"perplexity", "by_word"} and "perplexity" not in ours["pretrain", 3]
    assert {place: ours[place]["knowledge"] for place in asked} == {
        place: theirs[place]["knowledge"] for place in asked
    }
    assert set(ours["pretrain", 9]["knowledge"]["1"]) == {"en->en", "clone->clone", "en->clone", "clone->en"}
    assert ours["pretrain", 10]["by_word"]["clone"]["seen"]["perplexity"] == pytest.approx(
        theirs["pretrain", 10]["by_word"]["clone"]["seen"]["perplexity"], rel=1e-4
    )
    for mine, other in zip(series(one, "loss"), series(two, "loss"), strict=True):
        assert other[:2] == mine[:2] and other[2] == pytest.approx(mine[2], rel=1e-4)
