"""A rank that dies or hangs ends the job in bounded time, with a message that names it.

Each rank says where it is (:meth:`Watchdog.at`); a thread publishes that in the job's key-value store, and rank 0's
thread compares. Without it, the others would wait in a collective until its time-out, and none could say for whom.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from typing import Any

import torch.distributed as dist

from prealign_ds.training.environment import World

_LOGGER = logging.getLogger(__name__)
EXIT_CODE = 86
"""Exit code of a job that the watchdog has ended."""
_INTERVAL_S = 1.0
_NO_STORE = "rank 0 no longer answers: it died or hangs, or its node does"


class Watchdog:
    """Watches the ranks from a thread until :meth:`close`.

    Args:
        world: This process among the ranks.
        seconds: How long the slowest rank may stay in one place.
    """

    def __init__(self, world: World, seconds: float):
        self._world, self._seconds = world, seconds
        self.place, self._moves, self._published = "starting", 0, 0
        self._closed = threading.Event()
        if world.size > 1:
            store = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore("watchdog", store.clone() if hasattr(store, "clone") else store)
            self._publish()
            self._heard = time.monotonic()
            self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
            if not world.is_main:
                self._threads.append(threading.Thread(target=self._watch_main, name="watchdog of rank 0", daemon=True))
            for thread in self._threads:
                thread.start()

    def at(self, place: str) -> None:
        """This rank begins something else: ``place`` says what, for the message."""
        self.place, self._moves = place, self._moves + 1

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._world.size > 1:
            for thread in self._threads:
                thread.join(timeout=5 * _INTERVAL_S)

    def blame(self) -> str | None:
        """The ranks that no longer publish, named; None if all do. Takes some seconds."""
        if self._world.size == 1:
            return None
        try:
            before = self._read()
            time.sleep(4 * _INTERVAL_S)
            silent = [r for r, now in self._read().items() if now["published"] == before[r]["published"]]
            return _names(silent, before, "no longer answers") if silent else None
        except RuntimeError:
            return _NO_STORE

    def _publish(self) -> None:
        self._published += 1
        state = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "place": self.place,
            "moves": self._moves,
            "published": self._published,
        }
        self._store.set(str(self._world.rank), json.dumps(state))

    def _read(self) -> dict[int, dict[str, Any]]:
        ranks = range(self._world.size)
        return {r: json.loads(v) for r, v in zip(ranks, self._store.multi_get([str(r) for r in ranks]), strict=True)}

    def _watch(self) -> None:
        slowest, since = -1, time.monotonic()
        seen: dict[int, int] = {}
        answered: dict[int, float] = {}
        while not self._closed.wait(_INTERVAL_S):
            try:
                self._publish()
                if self._store.check(["verdict"]):
                    os._exit(EXIT_CODE)
                self._heard = time.monotonic()
                if not self._world.is_main:
                    continue
                states = self._read()
            except RuntimeError:
                continue  # rank 0, which keeps the store, is gone: see _watch_main
            now = time.monotonic()
            for rank, state in states.items():
                if seen.get(rank) != state["published"]:
                    seen[rank], answered[rank] = state["published"], now
            moves = min(state["moves"] for state in states.values())
            if moves > slowest:
                slowest, since = moves, now
            if now - since > self._seconds:
                silent = [rank for rank in states if now - answered[rank] > 5 * _INTERVAL_S]
                behind = [rank for rank, state in states.items() if state["moves"] == moves]
                what = "no longer answers" if silent else f"has not moved for {self._seconds:.0f} s"
                self._end(_names(silent or behind, states, what))

    def _watch_main(self) -> None:
        """Rank 0 keeps the store; where it is stopped, a call to the store never returns."""
        while not self._closed.wait(_INTERVAL_S):
            if time.monotonic() - self._heard > self._seconds + 5 * _INTERVAL_S:
                print(f"error: {_NO_STORE}; ending the job", file=sys.stderr, flush=True)
                os._exit(EXIT_CODE)

    def _end(self, message: str) -> None:
        print(f"error: {message}; ending the job", file=sys.stderr, flush=True)
        try:
            self._store.set("verdict", message)
            time.sleep(3 * _INTERVAL_S)  # the others read it
        finally:
            os._exit(EXIT_CODE)


def _names(ranks: list[int], states: dict[int, dict[str, Any]], what: str) -> str:
    shown = [f"rank {r} ({states[r]['host']}, process {states[r]['pid']}, {states[r]['place']})" for r in ranks[:8]]
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"{', '.join(shown)}{more}: {what}"
