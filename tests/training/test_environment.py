"""The process around a run: which ninja compiles, and locks that killed compilations leave behind."""

import os
import shutil

from prealign_ds.training.environment import clear_abandoned_builds, use_own_ninja


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


def test_the_ninja_beside_python_comes_first(tmp_path, monkeypatch):
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ninja").touch(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "own" / "python"))
    for path in ("other", "own"):
        monkeypatch.setenv("PATH", f"{tmp_path / path}:/usr/bin")
        use_own_ninja()
        assert shutil.which("ninja") == str(tmp_path / "own" / "ninja")
        assert os.environ["PATH"].endswith(f"{tmp_path / path}:/usr/bin")
    (tmp_path / "own" / "ninja").unlink()
    monkeypatch.setenv("PATH", f"{tmp_path / 'other'}")
    use_own_ninja()
    assert shutil.which("ninja") == str(tmp_path / "other" / "ninja")
