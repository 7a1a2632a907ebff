"""Starts programs in bounded time: as users do, with the deepspeed launcher or as one process, or forked.

Forked (forking.py), a program costs no imports of a launcher and of each rank: for tests of what ranks compute.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from prealign_ds.files import read_json, write_json

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def deepspeed_command(ranks, script, *arguments):
    launcher = Path(sys.executable).parent / "deepspeed"
    options = ["--num_gpus", ranks, "--master_port", free_port()]
    return [str(word) for word in (sys.executable, launcher, *options, script, *arguments)]


def forked_command(*words):
    return [str(word) for word in (sys.executable, "tests/distributed/forking.py", *words)]


def start(command, ranks=1, **options):
    """Start ``command`` in the repository with its output in pipes, or where ``options`` say."""
    environment = os.environ | {"OMP_NUM_THREADS": "1" if ranks > 1 else "2", "TOKENIZERS_PARALLELISM": "false"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in command], cwd=REPOSITORY, env=environment, **(pipes | options))


def kill(process):
    """Kill a process and all that it started, at once."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def finish(process, timeout=300):
    """Wait for a process; what it has written is shown when it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s\n{out[-3000:]}{err[-6000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def launch(ranks, script, *arguments, check=True, timeout=600, command=deepspeed_command):
    """Run ``script`` on ``ranks`` ranks of this machine; its output is shown when it fails."""
    done = finish(start(command(ranks, script, *arguments), ranks), timeout)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def launch_forked(ranks, script, *arguments, **options):
    """As :func:`launch`, on CPU ranks without the launcher."""
    return launch(ranks, script, *arguments, command=forked_command, **options)


def run_alone(script, *arguments, timeout=300):
    """Run ``script`` as one process without a launcher."""
    return finish(start([sys.executable, script, *arguments]), timeout)


def launch_each(*jobs, check=True, timeout=600):
    """Run each of ``jobs``, (ranks, script, argument, ...), one after the other, all forked from one start."""
    with tempfile.NamedTemporaryFile("w") as file:
        json.dump([[ranks, *map(str, words)] for ranks, *words in jobs], file)
        file.flush()
        done = finish(start(forked_command("each", file.name), max(ranks for ranks, *_ in jobs)), timeout)
        assert done.returncode == 0, done.stderr[-6000:]
        outcomes = read_json(file.name)
    results = [subprocess.CompletedProcess(job, *outcome) for job, outcome in zip(jobs, outcomes, strict=True)]
    for result in results if check else []:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return results


def usable_ds_configs(folder):
    """The files of ds_configs/; that for NVMe with its path in ``folder``, and only where the library it needs is."""
    paths = sorted((REPOSITORY / "ds_configs").glob("*.json"))
    nvme = REPOSITORY / "ds_configs/zero3_nvme_bf16.json"
    paths.remove(nvme)
    if "libaio" in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout:
        config = read_json(nvme)
        config["zero_optimization"]["offload_optimizer"]["nvme_path"] = str(folder)
        write_json(folder / "nvme.json", config)
        paths.append(folder / "nvme.json")
    return paths
