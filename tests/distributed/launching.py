"""Starts worker scripts with the real deepspeed launcher."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(ranks, script, *arguments, check=True, timeout=600):
    """Run ``script`` on ``ranks`` CPU ranks of this machine; its output is shown when it fails."""
    launcher = Path(sys.executable).parent / "deepspeed"
    environment = os.environ | {"OMP_NUM_THREADS": "1" if ranks > 1 else "2", "TOKENIZERS_PARALLELISM": "false"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, launcher, "--num_gpus", str(ranks), "--master_port", str(free_port()), script]
        + [str(argument) for argument in arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done
