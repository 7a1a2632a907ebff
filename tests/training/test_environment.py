"""Locks that killed compilations leave behind."""

import os

from prealign_ds.training.environment import clear_abandoned_builds


def test_abandoned_builds_are_cleared_but_not_while_others_may_compile(tmp_path):
    lock = tmp_path / "py311_cpu" / "some_op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    clear_abandoned_builds(tmp_path)
    assert not lock.exists()
    lock.touch()
    clear_abandoned_builds(tmp_path)
    assert lock.exists(), "who called first still holds its presence and may compile"
    for descriptor in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{descriptor}") == str(tmp_path / "prealign_ds.lock"):
            os.close(int(descriptor))  # as the end of a process does, however it ends
    clear_abandoned_builds(tmp_path)
    assert not lock.exists()
