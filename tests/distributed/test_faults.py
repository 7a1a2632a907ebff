"""Stopped, killed, moved, poisoned and starved runs end as if nothing had happened, or say what to do."""

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
import torch
from building import build_data, read_lines, series, write_recipe
from launching import deepspeed_command, finish, free_port, kill, launch, run_alone, start
from safetensors.torch import load_file

from prealign_ds.files import read_json, write_json

PRETRAIN, STOPS = "launchers/pretrain.py", "tests/distributed/worker_stops.py"
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def engine(zero):
    return f"deepspeed=tests/distributed/zero{zero}_fp32.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    build_data(folder)
    write_recipe(folder)
    return folder


def run_scenarios(data, ranks, scenarios, *options, check=True):
    """Each scenario: name, overrides, questions after which SIGTERM comes, poisoned forwards."""
    rows = [[str(data / name), overrides, stops, poisoned] for name, overrides, stops, poisoned in scenarios]
    write_json(data / "scenarios.json", rows)
    return launch(ranks, STOPS, data / "recipe.yaml", data / "scenarios.json", *options, check=check)


def losses(run):
    return series(run, "samples", "loss", "learning_rate")


def assert_same_run(found, expected):
    assert losses(found) == losses(expected)
    assert read_lines(found / "eval.jsonl") == read_lines(expected / "eval.jsonl")
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (found, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def assert_close_run(found, expected):
    ours, theirs = losses(found), losses(expected)
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    assert [row[3] for row in ours] == pytest.approx([row[3] for row in theirs], rel=1e-5)


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_one_rank_stops_all_and_nothing_changes(data, ranks):
    """Stops in both stages, and in an evaluation, under every ZeRO stage."""
    scenarios = []
    for zero in range(4):
        scenarios += [(f"straight{ranks}-{zero}", [engine(zero), "log.every_steps=3"], [], [])]
        scenarios += [(f"stopped{ranks}-{zero}", [engine(zero), "log.every_steps=3"], [4, 4, 7, 9], [])]
    run_scenarios(data, ranks, scenarios)
    for zero in range(4):
        assert_same_run(data / f"stopped{ranks}-{zero}", data / f"straight{ranks}-{zero}")


@pytest.mark.faults
def test_another_world_or_zero_stage_goes_on_in_both_stages(data):
    """Each run begins under one layout and is finished under another, twice."""
    run_scenarios(data, 2, [("whole", [engine(1)], [], [])])
    moves = {"a": [(2, 1), (1, 1), (2, 1)], "b": [(2, 1), (2, 3), (1, 1)], "c": [(1, 3), (2, 1), (2, 2)]}
    moves["d"] = [(2, 0), (1, 0), (2, 0)]
    for name, layouts in moves.items():
        for (ranks, zero), stop in zip(layouts, ([4], [12], []), strict=True):
            run_scenarios(data, ranks, [(name, [engine(zero)], stop, [])], *(["--stop-here"] if stop else []))
        assert_close_run(data / name, data / "whole")


@pytest.mark.faults
def test_a_changed_batch_size_goes_on_with_the_next_sample(data):
    run_scenarios(data, 1, [("batch", [engine(1)], [4], [])], "--stop-here")
    launch(1, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/batch", engine(1), "pretrain.batch_tokens=384")
    samples = [0, *(row[2] for row in losses(data / "batch"))]
    begun = samples.index(read_json(next((data / "batch/checkpoints/align").glob("*/manifest.json")))["sample"])
    assert samples == sorted(set(samples)) and samples[-1] == 160 and 80 in samples
    assert {b - a for a, b in zip(samples[:begun], samples[1 : begun + 1], strict=True)} <= {8, 12}


@pytest.mark.faults
def test_twenty_kills_at_random_moments_change_nothing(data):
    """Both ranks and the launcher die together, from the first step of a start on: in steps, saves and evaluations."""
    more = [engine(2), "checkpoint.every_tokens=256", "lm_tokens=40960", "align.budget_share=0.15"]
    more.append("evaluation.every_tokens=512")
    run_scenarios(data, 2, [("unkilled", more, [], [])])
    folder, draw = data / "killed", random.Random(3)
    command = deepspeed_command(2, PRETRAIN, data / "recipe.yaml", f"run_dir={folder}", *more)

    def lines():
        return len((folder / "metrics.jsonl").read_text().splitlines()) if (folder / "metrics.jsonl").exists() else 0

    stages, torn = [], 0
    for _ in range(20):
        target = lines() + draw.randint(1, 6)
        process = start(command, 2, **SILENT)
        wait_for(lambda target=target: lines() >= target, process)
        time.sleep(draw.uniform(0, 0.2))
        assert process.poll() is None, "the run ended before its twenty kills"
        kill(process)
        stages.append("pretrain" if (folder / "align").exists() else "align")
        torn += sum(not (step / "manifest.json").exists() for step in folder.glob("checkpoints/*/step-*"))
    print(f"killed in {stages}, {torn} of them while saving")
    assert set(stages) == {"align", "pretrain"} and torn
    launch(2, PRETRAIN, data / "recipe.yaml", f"run_dir={folder}", *more)
    assert_same_run(folder, data / "unkilled")
    assert not [step for step in folder.glob("checkpoints/*/step-*") if not (step / "manifest.json").exists()]


@pytest.mark.faults
def test_a_poisoned_gradient_is_skipped_and_reported(data):
    """The loss of one rank is not a number in one micro-batch of each stage's second step."""
    plain = [(f"poisoned{zero}", [engine(zero)], [], [4]) for zero in range(4)]
    run_scenarios(data, 2, [*plain, ("clean", [engine(1)], [], [])])
    for zero in range(4):
        run = data / f"poisoned{zero}"
        found = series(run, "loss", "skipped_steps")
        for stage in ("align", "pretrain"):
            rows = [row[1:] for row in found if row[0] == stage]
            assert [step for step, loss, _ in rows if loss is None] == [2]
            assert [skipped for *_, skipped in rows] == [0] + 9 * [1]
        assert [row[:3] for row in losses(run)] == [row[:3] for row in losses(data / "clean")]
        assert all(weight.isfinite().all() for weight in load_file(run / "model" / "model.safetensors").values())
        others = [row[2] for row in found if row[2] is not None]
        assert others == pytest.approx([row[2] for row in series(data / "poisoned1", "loss") if row[2]], rel=1e-5)


@pytest.mark.faults
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_poison_in_a_row_stops_the_run_and_names_the_samples(data, zero):
    overrides = [engine(zero), "guards.skipped_steps=3"]
    done = run_scenarios(data, 2, [(f"hopeless{zero}", overrides, [], list(range(8, 99)))], check=False)
    assert done.returncode != 0
    assert "3 steps in a row had a gradient that is not finite" in done.stdout + done.stderr
    record = read_json(data / f"hopeless{zero}" / "skipped.json")
    assert record["stage"] == "align" and record["in_row"] == 3
    step, first, last = record["step"], *record["samples"]
    assert (first, last) == (8 * (step - 1), 8 * step - 1)


def start_two(data, folder, *more):
    """Two ranks without a launcher, which would end the one when the other ends."""
    port, processes = str(free_port()), []
    for rank in "01":
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = ["env", *(f"{name}={value}" for name, value in world.items()), sys.executable, PRETRAIN]
        command += [data / "recipe.yaml", f"run_dir={folder}", engine(1), "lm_tokens=2M", *more]
        processes.append(start(command, 2))
    wait_for((folder / "metrics.jsonl").exists, processes[0])
    return processes


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_the_job_and_is_named(data, rank):
    processes = start_two(data, data / f"dead{rank}", "guards.hang_seconds=20")
    processes[rank].kill()
    done = finish(processes[1 - rank], timeout=60)
    finish(processes[rank])
    assert done.returncode in (2, 86) and f"rank {rank} " in done.stderr and "no longer answers" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_hanging_rank_ends_the_job_and_is_named(data, rank):
    processes = start_two(data, data / f"hanging{rank}", "guards.hang_seconds=10")
    processes[rank].send_signal(signal.SIGSTOP)
    done = finish(processes[1 - rank], timeout=60)
    assert done.returncode == 86 and f"rank {rank} " in done.stderr and "no longer answers" in done.stderr
    processes[rank].send_signal(signal.SIGCONT)
    assert finish(processes[rank], timeout=60).returncode != 0


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_process_of_a_launched_job_saves_on_both(data, number):
    folder, mark = data / f"one{number}", data / f"mark{number}.json"
    more = [f"run_dir={folder}", engine(1), "lm_tokens=2M", "--preempted-file", mark]
    process = start(deepspeed_command(2, PRETRAIN, data / "recipe.yaml", *more), 2, **SILENT)
    wait_for((folder / "metrics.jsonl").exists, process)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "--local_rank=1" in p.cmdline()]
    next(p for p in ranks if PRETRAIN in p.cmdline()).send_signal(number)
    assert finish(process).returncode != 0 and read_json(mark)["exit_code"] == 85
    saved = sorted((folder / "checkpoints/align").glob("step-*"))[-1]
    assert losses(folder)[-1][1] == read_json(saved / "manifest.json")["step"]
    assert len(list(saved.glob("*_optim_states.pt"))) == 2


@pytest.mark.faults
def test_a_second_signal_ends_at_once_and_harms_nothing(data):
    folder, big = data / "second", 256 * 400
    run_scenarios(data, 1, [("second", [engine(1), "lm_tokens=200M"], [4], [])], "--stop-here")
    manifests = {path: path.read_bytes() for path in folder.rglob("manifest.json")}
    more = [engine(1), "lm_tokens=200M", f"pretrain.batch_tokens={big}"]
    process = start([sys.executable, PRETRAIN, data / "recipe.yaml", f"run_dir={folder}", *more])
    time.sleep(1)
    for line in process.stderr:
        if "resumed after step" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGUSR1)
    time.sleep(2.5)
    assert process.poll() is None, "the step was over before the second signal came"
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM
    assert manifests and {path: path.read_bytes() for path in folder.rglob("manifest.json")} == manifests


@pytest.mark.faults
def test_a_batch_that_does_not_fit_is_found_before_the_first_step(data):
    def limit_memory():
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    command = [sys.executable, PRETRAIN, data / "recipe.yaml", f"run_dir={data}/large", engine(1)]
    done = finish(start([*command, "evaluation.batch_size=200000"], preexec_fn=limit_memory))
    assert done.returncode == 2 and "the largest batch does not fit in memory" in done.stderr, done.stderr[-3000:]
    assert "evaluation.batch_size" in done.stderr and not (data / "large" / "metrics.jsonl").exists()


@pytest.mark.faults
def test_damaged_checkpoints_name_the_file_and_delete_nothing(data):
    run_scenarios(data, 1, [("damaged", [engine(1)], [], [])])
    shutil.rmtree(data / "damaged" / "model")
    folder = data / "damaged" / "checkpoints" / "pretrain" / "step-00000010"
    weights = next(folder.glob("*_optim_states.pt"))
    whole, manifest = weights.read_bytes(), (folder / "manifest.json").read_text()

    def message(*more):
        done = run_alone(PRETRAIN, data / "recipe.yaml", f"run_dir={data}/damaged", engine(1), *more)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert folder.is_dir()
        return done.stderr

    weights.write_bytes(whole[:-100])
    assert f"{weights}: {len(whole) - 100} bytes, {len(whole)} were written" in message()
    weights.unlink()
    assert f"{weights}: missing" in message()
    weights.write_bytes(whole[::-1])
    assert f"{weights}: other content than was written" in message()
    weights.write_bytes(whole)
    (folder / "manifest.json").write_text(json.dumps(json.loads(manifest) | {"step": 9}))
    assert "manifest.json: changed since it was written" in message()
    (folder / "manifest.json").write_text(manifest)
    assert "stages 1, 2 and 3 can be exchanged, 0 only resumes 0" in message(engine(0))
    assert "checkpoint.accept_other_data=true" in message("codeswitch.ratio=0.3")
    assert "no config.yaml, so it is not the folder of a run" in message(f"run_dir={data}/tokens")


def test_a_full_or_read_only_disk_leaves_the_last_checkpoint_usable(data):
    with small_disk(data / "disk", "3m") as remount:
        command = [PRETRAIN, data / "recipe.yaml", f"run_dir={data}/disk/run", engine(1)]
        command += ["checkpoint.every_tokens=256", "checkpoint.keep=5"]
        done = run_alone(*command)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert "the last complete one is step-0000000" in done.stderr and "make room" in done.stderr
        remount("size=40m,ro")
        done = run_alone(*command)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert "Read-only file system" in done.stderr and f"{data}/disk/run" in done.stderr
        remount("rw")
        done = run_alone(*command)
        assert done.returncode == 0 and "resumed after step" in done.stderr, done.stderr[-3000:]


def test_a_signal_saves_and_exits_with_85(data):
    folder, mark = data / "signalled", data / "mark.json"
    command = [sys.executable, PRETRAIN, data / "recipe.yaml", f"run_dir={folder}", engine(1), "lm_tokens=2M"]
    process = start([*command, "--preempted-file", mark], **SILENT)
    wait_for((folder / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 85 and read_json(mark)["exit_code"] == 85
    manifest = read_json(sorted((folder / "checkpoints/align").glob("*/manifest.json"))[-1])
    assert losses(folder)[-1][1] == manifest["step"] and not (folder / "model").exists()
