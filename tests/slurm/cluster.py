"""A SLURM of two nodes on this machine, with its own munge, ports and folders; the system's own is not touched."""

import os
import shlex
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NODES = ("node1", "node2")

# cred_expire is also the time that a requeued job waits before it starts again (120 seconds by default).
# FirstJobId: the templates make their port of it; two clusters on one machine must not meet.
# /dev/null stands in for a GPU, so that the templates' --gpus-per-node can be asked for here.
SLURM_CONF = """
ClusterName=prealign
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
GresTypes=gpu
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 Gres=gpu:1 State=UNKNOWN"


class Cluster:
    """The commands of a running SLURM."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCH}

    def run(self, *words, check=True, **variables):
        """The output of a SLURM command."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment | variables,
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *words, **variables):
        """Hand a job to sbatch; returns its number."""
        return self.run("sbatch", "--parsable", *words, **variables).strip()

    def jobs(self, job):
        """What scontrol tells about a job: a dictionary for each task of an array."""
        text = self.run("scontrol", "show", "job", "--oneliner", job)
        return [dict(word.split("=", 1) for word in shlex.split(line) if "=" in word) for line in text.splitlines()]

    def finish(self, job, timeout=300):
        """Wait for the end of a job; returns what scontrol tells about its tasks."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.jobs(job)
            if all(task["JobState"] not in ("PENDING", "RUNNING", "COMPLETING") for task in found):
                return found
            time.sleep(0.5)
        raise AssertionError(f"job {job} did not end in {timeout} s: {found}")


@contextmanager
def slurm_cluster(folder):
    """Start a cluster with its files in ``folder``, stop it at the end; skip the test where SLURM cannot run."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]:
        pytest.skip(f"no {', '.join(missing)} here: install Debian's slurm-wlm and munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs for other users: this test must be root")
    write_configuration(folder)
    cluster = Cluster(folder)
    daemons = []

    def start(name, *words):
        with open(folder / f"{name}.out", "w") as output:
            daemons.append(
                subprocess.Popen(
                    [shutil.which(words[0], path=SEARCH), *words[1:]],
                    env=cluster.environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    try:
        files = [
            f"--{kind}={folder}/munge.{kind}" for kind in ("socket", "key-file", "pid-file", "seed-file", "log-file")
        ]
        start("munged", "munged", "--foreground", "--force", *files)
        wait_until(lambda: (folder / "munge.socket").exists(), "munged did not start", folder)
        start("slurmctld", "slurmctld", "-D")
        # Each node has one core, as far as this machine has enough: the ranks take a thread for each core they see, and
        # the sums of a loss depend on the number of threads.
        cores = sorted(os.sched_getaffinity(0))
        for number, name in enumerate(NODES):
            core = cores[number % len(cores)]
            start(name, "taskset", "--cpu-list", str(core), shutil.which("slurmd", path=SEARCH), "-D", "-N", name)
        wait_until(
            lambda: (
                cluster.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split() == ["idle", "idle"]
            ),
            "the nodes did not become idle",
            folder,
        )
        yield cluster
    finally:
        cluster.run("scancel", "--full", "--user=root", check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def write_configuration(folder):
    host = socket.gethostname().split(".")[0]
    nodes = "\n".join(NODE.format(name=name, host=host, port=free_port()) for name in NODES)
    (folder / "slurm.conf").write_text(SLURM_CONF.format(host=host, folder=folder, port=free_port(), nodes=nodes))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    (folder / "munge.key-file").write_bytes(os.urandom(1024))
    (folder / "munge.key-file").chmod(0o600)
    for name in ("state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()


def wait_until(true, message, folder, timeout=60):
    """Wait for ``true()``; where it never comes, fail with the end of the daemons' logs."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(folder.glob("*.log*")))
            raise AssertionError(f"{message}\n{logs}")
        time.sleep(0.3)
