"""Being stopped: a signal to one rank, an answer of all ranks at the same place, and an exit code that says so.

Clusters send SIGTERM before they take a job's machines, and SIGUSR1 when they were asked to warn (``sbatch --signal``).
Under the ``deepspeed`` launcher only SIGUSR1 reaches the ranks unharmed: the launcher answers SIGTERM by ending them,
which leaves them 30 seconds.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from prealign_ds.files import write_json
from prealign_ds.training.environment import World, leave_world

EXIT_CODE = 85
"""Exit code of ranks that were stopped by a signal and can go on: start the same command again."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_ONE_SIGNAL_S = 2.0  # the cluster and the launcher may both deliver one


class Preempted(SystemExit):
    """Raised on all ranks at the same place after one was told to stop; ends the process with code 85."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopFlag:
    """Remembers SIGTERM and SIGUSR1 until the ranks have agreed to stop.

    A second signal, two seconds or more after the first, ends the process at once: what is being written then is left
    incomplete and not used.

    Args:
        world: This process among the ranks.
    """

    def __init__(self, world: World):
        self._world = world
        self._since: float | None = None
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._since >= _ONE_SIGNAL_S:
            os._exit(128 + number)

    def check(self) -> None:
        """Raise :class:`Preempted` on all ranks if one was told to stop; all ranks must call it."""
        if self._world.any(self._since is not None):
            raise Preempted


@contextmanager
def stoppable(world: World, mark: Path | None) -> Iterator[StopFlag]:
    """Work that signals stop; ``mark`` is written by rank 0 when they did, and not before everything is saved.

    A file, because launchers such as torchrun do not pass the exit code of their ranks on.
    """
    try:
        yield StopFlag(world)
        leave_world()
    except Preempted:
        if world.is_main and mark is not None:
            write_json(mark, {"exit_code": EXIT_CODE, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        world.any(False)  # no rank ends before the mark is there: a launcher would end the others
        leave_world()
        raise
