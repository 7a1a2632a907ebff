"""Runs jobs, some at a time: what is done is not done again, after an interruption either."""

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

from prealign_ds.files import claimed, numbered_lines, read_json, write_json
from prealign_ds.reproduction.jobs import Job

TIMES = "times.json"
_LAST_LINES = 20
_GRACE_SECONDS = 120


def run_jobs(jobs: Sequence[Job], output: Path, at_once: int = 1) -> None:
    """Run every job that is not done, in order as far as there is room and those before it are done.

    Each writes to a log in ``output/logs``; the seconds of all attempts are added up in ``output/times.json``. On
    SIGINT or SIGTERM, and when a job fails, those that run are told to stop: the ranks of a launcher save first.

    Args:
        jobs: All jobs.
        output: Folder of the reproduction.
        at_once: Jobs that run at the same time, each on its share of the cores.

    Raises:
        ValueError: If a job fails, with the end of its log, or another process works in ``output``.
        KeyboardInterrupt: After SIGINT or SIGTERM.
    """
    with claimed(output, "reproduction"), _stoppable() as received:
        _run_all(jobs, output, at_once, received)


class _Attempt:
    """A job that runs.

    Args:
        job: The job.
        output: Folder of the reproduction.
        place: What to call it.
        slot: Which of the places for jobs it takes.
        cores: The cores to run on.
    """

    def __init__(self, job: Job, output: Path, place: str, slot: int, cores: list[int]):
        self.job, self.slot = job, slot
        self._output, self._place, self._log = output, place, log_file(output, job)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        print(
            f"{place}: began {time.strftime('%H:%M:%S')}, log in {self._log}\n  $ {shlex.join(job.words)}", flush=True
        )
        self._began = time.monotonic()
        # USR1 is ignored until the ranks of a launcher have set up their answer, and by DeepSpeed's own processes;
        # with TERM those would end the ranks before they have saved. A tool has neither and ends at once.
        script = 'trap "" USR1; exec "$@"' if _is_launched(job) else 'exec "$@"'
        with open(self._log, "ab") as handle:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "job", *job.words],
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )

    def close(self) -> None:
        """End what is left of the job's processes, and add up its seconds."""
        _end(self.process)
        seconds, spent = time.monotonic() - self._began, times(self._output)
        write_json(self._output / TIMES, spent | {self.job.name: spent.get(self.job.name, 0.0) + seconds})

    def check(self) -> None:
        """Raise ValueError if the job, which has ended, has failed."""
        job, code = self.job, self.process.returncode
        if code:
            raise ValueError(f"{job.name}: ended with code {code}; the end of {self._log}:\n{_tail(self._log)}")
        if not job.is_done():
            keys = f" with {', '.join(job.keys)}" if job.keys else ""
            raise ValueError(f"{job.name}: ended well, but left no {job.makes}{keys}; look at {self._log}")
        print(f"{self._place}: {(time.monotonic() - self._began) / 60:.1f} minutes", flush=True)


def _run_all(jobs: Sequence[Job], output: Path, at_once: int, received: list[int]) -> None:
    waiting = [(f"[{number}/{len(jobs)}] {job.name}", job) for number, job in enumerate(jobs, 1)]
    cores = sorted(os.sched_getaffinity(0))
    running: list[_Attempt] = []
    try:
        while waiting or running:
            for attempt in [attempt for attempt in running if attempt.process.poll() is not None]:
                running.remove(attempt)
                attempt.close()
                attempt.check()
            unfinished = {job.name for _, job in waiting} | {attempt.job.name for attempt in running}
            ready = next((entry for entry in waiting if not unfinished & set(entry[1].after)), None)
            if received:
                raise KeyboardInterrupt
            if ready and ready[1].is_done():
                print(f"{ready[0]}: done", flush=True)
                waiting.remove(ready)
            elif ready and len(running) < at_once:
                place, job = ready
                slot = min(set(range(at_once)) - {attempt.slot for attempt in running})
                running.append(_Attempt(job, output, place, slot, cores[slot::at_once] or cores))
                waiting.remove(ready)
            else:
                time.sleep(0.2)
    finally:
        _stop(running, received)
        for attempt in running:
            attempt.close()


def log_file(output: Path, job: Job) -> Path:
    """Where a job's output goes."""
    return output / "logs" / f"{job.name.replace(' ', '-').replace('/', '_')}.log"


def times(output: Path) -> dict[str, float]:
    """Seconds of each job until now."""
    return read_json(output / TIMES) if (output / TIMES).is_file() else {}


def _tail(log: Path) -> str:
    return "\n".join(f"  {line}" for _, line in deque(numbered_lines(log), maxlen=_LAST_LINES))


def _is_launched(job: Job) -> bool:
    return any(word.startswith("launchers/") for word in job.words)


def _stop(running: Sequence[_Attempt], received: list[int]) -> None:
    """Let the ranks save, until they have, or another signal comes, or some time has passed."""
    if not running:
        return
    names = ", ".join(attempt.job.name for attempt in running)
    print(f"{names}: told to stop; a second signal ends them at once", flush=True)
    number, end = len(received), time.monotonic() + _GRACE_SECONDS
    for attempt in running:
        os.killpg(attempt.process.pid, signal.SIGUSR1)  # once: a second one would end the ranks at once
    while any(a.process.poll() is None for a in running) and len(received) == number and time.monotonic() < end:
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
