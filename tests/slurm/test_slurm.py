"""The templates in a real SLURM of two nodes, one CPU rank each: preemption, arrays, and worlds that are refused."""

import sys
import time
from pathlib import Path

import pytest
from building import build_data, read_lines, write_recipe
from cluster import slurm_cluster, wait_until
from conftest import make_text
from launching import launch
from safetensors.torch import load_file

from prealign_ds.corpus.fetch import fetch
from prealign_ds.files import read_json

pytestmark = pytest.mark.slurm

BIN = Path(sys.executable).parent
STEPS = 60  # of each stage: enough that a signal comes in the middle
CLUSTER_FILE = """
RANKS_PER_NODE=1
LAUNCHER=${{LAUNCHER:-torchrun}}
SETUP='export PATH={path}:$PATH'
JOB_FOLDER={folder}/jobs
MASTER_ADDR=127.0.0.1
GLOO_SOCKET_IFNAME=lo
OMP_NUM_THREADS=1
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The tiny data, its recipe, and the settings of the cluster."""
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    every = {"every_tokens": 20 * 256}
    write_recipe(folder, lm_tokens=2 * STEPS * 256, evaluation=every, checkpoint=every)
    write_cluster_file(folder, BIN)
    return folder


@pytest.fixture(scope="module")
def straight(data):
    """The recipe on two ranks without SLURM, never interrupted."""
    launch(2, "launchers/pretrain.py", data / "recipe.yaml", f"run_dir={data}/straight")
    return data / "straight"


def write_cluster_file(folder, path):
    (folder / "cluster.env").write_text(CLUSTER_FILE.format(path=path, folder=folder))


def write_program(folder, name, text):
    """A bash script that comes before the program of that name; returns the folder to put on PATH."""
    program = folder / "bin" / name
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\n{text}\n")
    program.chmod(0o755)
    return program.parent


def submit(slurm, folder, template, *arguments, nodes=2, options=(), **variables):
    """Hand a template to sbatch with the cluster file in ``folder``, where the logs go too; returns the number."""
    gpus = [] if template == "prepare_data" else ["--gpus-per-node=1"]
    return slurm.submit(
        f"--nodes={nodes}",
        *gpus,
        "--cpus-per-task=1",
        f"--output={folder}/%x-%j.log",
        *options,
        f"launchers/slurm/{template}.sbatch",
        *arguments,
        PREALIGN_CLUSTER=str(folder / "cluster.env"),
        **variables,
    )


def log_of(task):
    """The text of a job's log; its path and text are shown when the test fails, and by `pytest -s`."""
    text = Path(task["StdOut"]).read_text()
    print(f"--- {task['StdOut']}\n{text}")
    return text


def wait_for_step(slurm, job, run, stage, step, timeout=180):
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + timeout
    while not ((run / "metrics.jsonl").exists() and (stage, step) in {row[:2] for row in series(run)}):
        assert time.monotonic() < deadline, f"{run} did not come to step {step} of {stage}: {slurm.jobs(job)}"
        assert all(task["JobState"] in ("PENDING", "RUNNING", "COMPLETED") for task in slurm.jobs(job)), slurm.jobs(job)
        time.sleep(0.1)


def series(run):
    return [(record["stage"], record["step"], record["loss"]) for record in read_lines(run / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("launcher", "signal", "stage"), [("torchrun", "TERM", "align"), ("deepspeed", "USR1", "pretrain")]
)
def test_a_preempted_job_is_requeued_and_ends_in_the_same_weights(slurm, data, straight, launcher, signal, stage):
    run = data / launcher
    job = submit(slurm, data, "pretrain", data / "recipe.yaml", f"run_dir={run}", LAUNCHER=launcher)
    wait_for_step(slurm, job, run, stage, 10)
    slurm.run("scancel", f"--signal={signal}", job)
    (task,) = slurm.finish(job)
    text = log_of(task)
    assert task["JobState"] == "COMPLETED" and task["Restarts"] == "1"
    assert text.count(f"preempted: job {job} goes back into the queue") == 1
    assert series(run) == series(straight)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, straight))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)
    assert not list((data / "jobs").iterdir()), "no files of ended jobs are left"


def test_evaluate_repeats_the_perplexity_of_the_run(slurm, data, straight):
    (task,) = slurm.finish(submit(slurm, data, "evaluate", straight))
    assert task["JobState"] == "COMPLETED", log_of(task)
    expected = read_lines(straight / "eval.jsonl")[-1]["perplexity"]
    found = read_json(straight / "model" / "evaluation.json")
    assert {language: value["perplexity"] for language, value in found.items()} == pytest.approx(expected, rel=1e-5)


def test_a_preempted_task_of_an_array_is_requeued_alone(slurm, data):
    """The number of an array's last task is the array's own: a plain requeue would start all tasks again."""
    systems = data / "systems"
    changes = {"joint": "stages=[pretrain] codeswitch.mode=off", "joint_cs": "stages=[pretrain]", "prealign": ""}
    line = f"launchers/pretrain.py {data / 'recipe.yaml'}"
    tasks = [f"{line} {words} run_dir={systems / slug}\n" for slug, words in changes.items()]
    (data / "tasks.txt").write_text("".join(tasks))
    job = submit(slurm, data, "reproduce", data / "tasks.txt", nodes=1, options=["--array=2,3"])
    wait_for_step(slurm, job, systems / "prealign", "align", 10)
    slurm.run("scancel", "--signal=USR1", f"{job}_3")
    found = {task["ArrayTaskId"]: task for task in slurm.finish(job)}
    assert [found[number]["JobState"] for number in ("2", "3")] == ["COMPLETED"] * 2, [*map(log_of, found.values())]
    assert [found[number]["Restarts"] for number in ("2", "3")] == ["0", "1"]
    assert found["3"]["JobId"] == job and f"preempted: job {job}_3 goes back" in log_of(found["3"])
    assert {row[0] for row in series(systems / "joint_cs")} == {"pretrain"}
    assert (systems / "prealign/model/model.safetensors").is_file()


def test_an_array_prepares_corpora_and_a_fetch_that_was_stopped_is_requeued(slurm, data, tmp_path):
    documents = [make_text(200, seed) for seed in range(8)]
    for language in ("en", "de"):
        (tmp_path / f"{language}.txt").write_text("\n\n".join(documents))
    fetch(tmp_path / "de/text", [str(tmp_path / "de.txt")], "de", {"train": 1.0})
    (tmp_path / "corpora.txt").write_text(
        "# folder language [sources and options]\n\n"
        f"{tmp_path}/en en {tmp_path}/e*.txt --splits train=1\n{tmp_path}/de de\n"
    )
    # The first fetch lasts until it is stopped.
    begun = tmp_path / "begun"
    slow = f'[[ $1 != *fetch* || -e {begun} ]] || {{ touch {begun} && exec sleep 600; }}\nexec {BIN}/python "$@"'
    write_cluster_file(tmp_path, f"{write_program(tmp_path, 'python', slow)}:{BIN}")
    job = submit(
        slurm, tmp_path, "prepare_data", tmp_path / "corpora.txt", data / "tokenizer", nodes=1, options=["--array=1-2"]
    )
    wait_until(begun.exists, "the fetch did not begin", slurm.folder)
    time.sleep(1)  # from bash to sleep
    slurm.run("scancel", "--signal=USR1", f"{job}_1")
    tasks = sorted(slurm.finish(job), key=lambda task: task["ArrayTaskId"])
    assert [task["JobState"] for task in tasks] == ["COMPLETED"] * 2, [log_of(task) for task in tasks]
    assert [task["Restarts"] for task in tasks] == ["1", "0"]
    english, german = (read_json(tmp_path / language / "tokens/manifest.json") for language in ("en", "de"))
    assert (english["language"], german["language"]) == ("en", "de")
    assert english["splits"] == german["splits"] and english["splits"]["train"]["tokens"] > 1000


@pytest.mark.parametrize(
    ("launcher", "change", "started"),
    [
        ("torchrun", "s/^--nproc-per-node=1$/--nproc-per-node=2/", 4),
        # Without a hostfile deepspeed goes on, and every node is a world of its own.
        ("deepspeed", "s/^--hostfile=.*/--hostfile=none/; s/^--node_rank=.*/--node_rank=0/", 1),
    ],
    ids=["torchrun", "deepspeed"],
)
def test_a_world_that_is_not_nodes_times_ranks_is_refused(slurm, data, tmp_path, launcher, change, started):
    changed = f'mapfile -t words < <(printf "%s\\n" "$@" | sed "{change}")\nexec {BIN / launcher} "${{words[@]}}"'
    write_cluster_file(tmp_path, f"{write_program(tmp_path, launcher, changed)}:{BIN}")
    (task,) = slurm.finish(
        submit(slurm, tmp_path, "pretrain", data / "recipe.yaml", f"run_dir={tmp_path}/run", LAUNCHER=launcher)
    )
    assert task["JobState"] == "FAILED" and task["Restarts"] == "0"
    assert f"the configuration asks for 2 ranks, the launcher started {started}" in log_of(task)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_in_a_job_shows_the_real_nodes(slurm, data):
    (task,) = slurm.finish(submit(slurm, data, "pretrain", "--dry-run", "recipe.yaml", LAUNCHER="deepspeed"))
    assert task["JobState"] == "COMPLETED"
    text = log_of(task)
    assert "node1 slots=1\nnode2 slots=1\n" in text and text.strip().endswith("recipe.yaml world_size=2")
