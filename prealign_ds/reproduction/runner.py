"""Runs jobs one after the other: what is done is not done again, after an interruption either."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prealign_ds.files import numbered_lines, read_json, write_json
from prealign_ds.reproduction.jobs import Job

TIMES = "times.json"
_LAST_LINES = 20
_GRACE_SECONDS = 120


def run_jobs(jobs: Sequence[Job], output: Path) -> None:
    """Run every job that is not done.

    Each writes to a log in ``output/logs``; the seconds of all attempts are added up in ``output/times.json``. On
    SIGINT or SIGTERM the job that runs is told to stop: the ranks of a launcher save first.

    Raises:
        ValueError: If a job fails, with the end of its log, or another process works in ``output``.
        KeyboardInterrupt: After SIGINT or SIGTERM.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            for number, job in enumerate(jobs, 1):
                place = f"[{number}/{len(jobs)}] {job.name}"
                if job.is_done():
                    print(f"{place}: done", flush=True)
                else:
                    _run(job, output, place)
    except Timeout as error:
        raise ValueError(f"{output}: another reproduction works in this folder; wait for it, or stop it") from error


def _run(job: Job, output: Path, place: str) -> None:
    log = log_file(output, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{place}: began {time.strftime('%H:%M:%S')}, log in {log}\n  $ {shlex.join(job.words)}", flush=True)
    began = time.monotonic()
    try:
        with open(log, "ab") as handle:
            code = _wait(job, handle)
    finally:
        seconds = time.monotonic() - began
        spent = times(output)
        write_json(output / TIMES, spent | {job.name: spent.get(job.name, 0.0) + seconds})
    if code:
        raise ValueError(f"{job.name}: ended with code {code}; the end of {log}:\n{_tail(log)}")
    if not job.is_done():
        keys = f" with {', '.join(job.keys)}" if job.keys else ""
        raise ValueError(f"{job.name}: ended well, but left no {job.makes}{keys}; look at {log}")
    print(f"{place}: {seconds / 60:.1f} minutes", flush=True)


def log_file(output: Path, job: Job) -> Path:
    """Where a job's output goes."""
    return output / "logs" / f"{job.name.replace(' ', '-').replace('/', '_')}.log"


def times(output: Path) -> dict[str, float]:
    """Seconds of each job until now."""
    return read_json(output / TIMES) if (output / TIMES).is_file() else {}


def _tail(log: Path) -> str:
    return "\n".join(f"  {line}" for _, line in deque(numbered_lines(log), maxlen=_LAST_LINES))


def _wait(job: Job, handle: Any) -> int:
    """Run a job to its end in a process group of its own; its exit code."""
    with (
        _stoppable() as received,
        subprocess.Popen(
            # USR1 is ignored until the ranks of a launcher have set up their answer, and by DeepSpeed's own processes;
            # with TERM those would end the ranks before they have saved. A tool has neither and ends at once.
            ["bash", "-c", 'trap "" USR1; exec "$@"' if _is_launched(job) else 'exec "$@"', "job", *job.words],
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            while not received:
                try:
                    return process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
            print(f"{job.name}: told to stop; a second signal ends it at once", flush=True)
            _stop(process, received)
        finally:
            _end(process)
    raise KeyboardInterrupt


def _is_launched(job: Job) -> bool:
    return any(word.startswith("launchers/") for word in job.words)


def _stop(process: subprocess.Popen[bytes], received: list[int]) -> None:
    """Let the ranks save, until they have, or another signal comes, or some time has passed."""
    number, end = len(received), time.monotonic() + _GRACE_SECONDS
    os.killpg(process.pid, signal.SIGUSR1)  # once: a second one would end the ranks at once
    while process.poll() is None and len(received) == number and time.monotonic() < end:
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a job's processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        end = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """The signals that come, instead of their usual effects."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda found, frame: received.append(found))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
