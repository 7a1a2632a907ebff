"""The SLURM templates without SLURM: what their --dry-run prints, under both launchers."""

import os
import re
import shlex
import subprocess

import pytest
from conftest import REPOSITORY

SLURM = REPOSITORY / "launchers/slurm"
TEMPLATES = sorted(SLURM.glob("*.sbatch"))


def dry_run(template, *arguments, check=True, **variables):
    """Run a template with --dry-run, outside of SLURM unless ``variables`` say otherwise."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", f"launchers/slurm/{template}.sbatch", "--dry-run", *map(str, arguments)],
        cwd=REPOSITORY,
        env=outside | variables,
        capture_output=True,
        text=True,
    )
    assert not check or (done.returncode == 0 and not done.stderr), done.stderr
    return done


def commands(text):
    """The words of the commands that a dry run printed."""
    return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("+ srun ")]


def two_nodes(folder):
    """The variables of a job on two nodes, and a scontrol that knows their names."""
    (folder / "scontrol").write_text("#!/bin/sh\necho node7\necho node9\n")
    (folder / "scontrol").chmod(0o755)
    return {
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[7,9]",
        "SLURM_CPUS_PER_TASK": "6",
        "RANKS_PER_NODE": "4",
        "PATH": f"{folder}:{os.environ['PATH']}",
    }


@pytest.mark.parametrize("script", [*TEMPLATES, *SLURM.glob("*.sh"), *SLURM.glob("*.env")], ids=lambda path: path.name)
def test_bash_can_read_every_script(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_every_template_asks_for_the_same_things(template):
    lines = set(re.findall(r"^#SBATCH (.*)$", template.read_text(), re.MULTILINE))
    assert {"--nodes=1", "--ntasks-per-node=1", "--signal=USR1@300", "--requeue", "--open-mode=append"} <= lines
    assert "--output=%x-%j.log" in lines


@pytest.mark.parametrize("script", ["pretrain", "evaluate"])
def test_torchrun_on_two_nodes(script, tmp_path):
    (words,) = commands(
        dry_run(script, "given", "stages=[pretrain]", LAUNCHER="torchrun", **two_nodes(tmp_path)).stdout
    )
    shell = words.index("bash")
    assert {"--kill-on-bad-exit=1", "--nodes=2", "--ntasks=2", "--cpus-per-task=6"} <= set(words[:shell])
    assert words[shell + 2].startswith('trap "" USR1; exec torchrun ') and words[shell + 3] == "torchrun"
    launcher = set(words[shell + 4 : words.index(f"launchers/{script}.py")])
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-backend=c10d", "--rdzv-endpoint=node7:20123"} <= launcher
    assert words[-6:] == [
        f"launchers/{script}.py",
        "--preempted-file",
        str(REPOSITORY / "runs/slurm/123.preempted"),
        "given",
        "stages=[pretrain]",
        "world_size=8",
    ]


def test_deepspeed_on_two_nodes(tmp_path):
    text = dry_run("pretrain", "recipe.yaml", LAUNCHER="deepspeed", **two_nodes(tmp_path)).stdout
    hostfile = REPOSITORY / "runs/slurm/123.hosts"
    assert f"{hostfile}:\nnode7 slots=4\nnode9 slots=4\n" in text and not hostfile.exists()
    (words,) = commands(text)
    shell = words.index("bash")
    assert words[shell + 2].startswith('trap "" USR1 TERM; exec deepspeed --node_rank="$SLURM_NODEID" ')
    launcher = words[shell + 4 : words.index("launchers/pretrain.py")]
    assert launcher == [f"--hostfile={hostfile}", "--no_ssh", "--master_addr=node7", "--master_port=20123"]
    assert words[-2:] == ["recipe.yaml", "world_size=8"]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_outside_of_slurm_the_nodes_are_those_of_the_template(launcher):
    (words,) = commands(dry_run("pretrain", "recipe.yaml", LAUNCHER=launcher).stdout)
    assert "--nodes=1" in words and "--cpus-per-task=64" in words and words[-1] == "world_size=8"
    assert "--rdzv-endpoint=node1:20001" in words or "--master_addr=node1" in words


def test_the_cluster_file_decides(tmp_path):
    (tmp_path / "own.env").write_text(
        "RANKS_PER_NODE=3\nLAUNCHER=torchrun\nSETUP='module load python'\nJOB_FOLDER=/shared\n"
        "MASTER_ADDR=10.0.0.1\nMASTER_PORT=7\n"
    )
    text = dry_run(
        "pretrain", "r.yaml", PREALIGN_CLUSTER=str(tmp_path / "own.env"), MASTER_ADDR="of-another-job"
    ).stdout
    (words,) = commands(text)
    assert text.startswith("+ module load python\n")
    assert "--nproc-per-node=3" in words and "--rdzv-endpoint=10.0.0.1:7" in words and "/shared/1.preempted" in words


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_reproduce_runs_the_tasks_of_the_list(tmp_path, launcher):
    tasks = tmp_path / "tasks.txt"
    corpora = '[{"name":"clone","clone":true}]'
    tasks.write_text(
        f"launchers/pretrain.py recipe.yaml stages=[pretrain] run_dir=out/joint\n# a comment\n"
        f"launchers/pretrain.py recipe.yaml data.corpora={corpora} run_dir=out/only_tgt\n"
        "launchers/evaluate.py --only perplexity --model out/joint/model out/joint\n"
    )
    found = commands(dry_run("reproduce", tasks, LAUNCHER=launcher).stdout)
    mark = str(REPOSITORY / "runs/slurm/1.preempted")
    assert [words[words.index(mark) + 1 :] for words in found] == [
        ["recipe.yaml", "stages=[pretrain]", "run_dir=out/joint", "world_size=8"],
        ["recipe.yaml", f"data.corpora={corpora}", "run_dir=out/only_tgt", "world_size=8"],
        ["--only", "perplexity", "--model", "out/joint/model", "out/joint", "world_size=8"],
    ]
    (one,) = commands(dry_run("reproduce", tasks, SLURM_ARRAY_TASK_ID="3").stdout)
    assert "launchers/evaluate.py" in one


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_prepare_data_fetches_and_tokenizes(tmp_path, launcher):
    corpora = tmp_path / "corpora.txt"
    corpora.write_text("# a comment\ndata/de de raw/*.txt --splits train=1\n\ndata/zh zh\n")
    fetch, german, chinese = commands(dry_run("prepare_data", corpora, "data/tokenizer", LAUNCHER=launcher).stdout)
    python = fetch.index("python")
    assert shlex.join(fetch[python:]) == (
        "python tools/fetch_corpus.py 'raw/*.txt' --splits train=1 --language de --output data/de/text"
    )
    assert (
        german[-9:-2]
        == "tools/tokenize_corpus.py --input data/de/text --tokenizer data/tokenizer --output data/de/tokens".split()
    )
    assert "data/zh/tokens" in chinese and chinese[-2:] == ["--workers", "16"]
    assert len(commands(dry_run("prepare_data", corpora).stdout)) == 1, "without a tokenizer, text alone"


@pytest.mark.parametrize(
    ("template", "arguments", "variables", "message"),
    [
        ("pretrain", [], {}, "name a recipe"),
        ("evaluate", [], {}, "name a run"),
        ("reproduce", [], {}, "usage: sbatch --array=1-N launchers/slurm/reproduce.sbatch TASKS"),
        ("reproduce", ["LICENSE"], {"SLURM_ARRAY_TASK_ID": "1000"}, "tasks, there is no task 1000"),
        ("prepare_data", ["none.txt"], {}, "none.txt: no such list of tasks"),
        ("pretrain", ["r.yaml"], {"LAUNCHER": "mpirun"}, "LAUNCHER=mpirun; give torchrun or deepspeed"),
        ("pretrain", ["r.yaml"], {"RANKS_PER_NODE": "all"}, "RANKS_PER_NODE=all; give a number"),
        ("pretrain", ["r.yaml"], {"PREALIGN_CLUSTER": "none.env"}, "none.env: no such cluster file"),
        ("pretrain", ["r.yaml"], {"SLURM_SUBMIT_DIR": "/"}, "/: submit from the root of the repository"),
    ],
)
def test_errors_say_what_to_do(template, arguments, variables, message):
    done = dry_run(template, *arguments, check=False, **variables)
    assert done.returncode == 2 and message in done.stderr and "srun" not in done.stdout


def test_a_template_outside_of_slurm_names_sbatch_and_dry_run():
    words = ["bash", "launchers/slurm/pretrain.sbatch", "recipe.yaml"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(words, cwd=REPOSITORY, env=outside, capture_output=True, text=True)
    assert done.returncode == 2 and "sbatch launchers/slurm/pretrain.sbatch ..., or: bash" in done.stderr
