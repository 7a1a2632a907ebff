"""Jobs: done once, stopped and gone on with, failing with a reason. The jobs are small commands of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from prealign_ds.files import read_json, write_json
from prealign_ds.reproduction.jobs import Job
from prealign_ds.reproduction.runner import log_file, run_jobs, times

# A launcher stands between, as deepspeed does, and waits for a rank that saves on USR1 and goes on where it stopped.
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]) and 1)"
RANK = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(number, frame):
    (folder / "saved").write_text("half")
    sys.exit(85)
signal.signal(signal.SIGUSR1, save)
(folder / "began").touch()
if not (folder / "saved").exists():
    time.sleep(60)
(folder / "model").write_text("whole")
"""
RUN = """
import sys
from pathlib import Path
from prealign_ds.cli import run
from prealign_ds.reproduction.jobs import Job
from prealign_ds.reproduction.runner import run_jobs
folder = Path(sys.argv[1])
words = [sys.executable, str(folder / "launcher.py"), str(folder / "launchers/rank.py"), str(folder)]
jobs = [Job("train", [*words, "launchers/rank.py"], folder / "model")]
run(lambda: run_jobs(jobs, folder / "out"))
"""


def job(name, code, makes, *keys):
    return Job(name, [sys.executable, "-c", code, str(makes)], makes, keys)


def counting(folder, name):
    """A job that writes its file, and counts how often it is run."""
    code = f"import sys; open(sys.argv[1], 'w').write('done'); open({str(folder / 'runs')!r}, 'a').write({name!r})"
    return job(name, code, folder / name)


def test_what_is_done_is_not_done_again(tmp_path, capsys):
    jobs = [counting(tmp_path, "a"), counting(tmp_path, "b")]
    run_jobs(jobs, tmp_path / "out")
    run_jobs(jobs, tmp_path / "out")
    assert (tmp_path / "runs").read_text() == "ab"
    assert capsys.readouterr().out.endswith("[1/2] a: done\n[2/2] b: done\n")
    (tmp_path / "b").unlink()
    run_jobs(jobs, tmp_path / "out")
    assert (tmp_path / "runs").read_text() == "abb"
    assert set(times(tmp_path / "out")) == {"a", "b"}


def test_a_file_that_several_jobs_write_to_is_done_by_its_keys(tmp_path):
    path = tmp_path / "evaluation.json"
    write_json(path, {"perplexity": 1})
    assert job("a", "", path, "perplexity").is_done() and not job("b", "", path, "perplexity", "leakage").is_done()
    with pytest.raises(ValueError, match=r"b: ended well, but left no .*evaluation.json with perplexity, leakage"):
        run_jobs([job("b", "", path, "perplexity", "leakage")], tmp_path / "out")


def test_a_job_that_fails_stops_all_with_the_end_of_its_log(tmp_path):
    bad = job("train en_clone joint", "print('about to fail'); raise SystemExit(3)", tmp_path / "never")
    with pytest.raises(ValueError, match="train en_clone joint: ended with code 3; the end") as found:
        run_jobs([bad, counting(tmp_path, "later")], tmp_path / "out")
    assert str(found.value).endswith(f"{log_file(tmp_path / 'out', bad)}:\n  about to fail")
    assert not (tmp_path / "runs").exists()


def test_jobs_run_at_once_on_cores_of_their_own_and_after_those_they_need(tmp_path):
    def meeting(name, other):
        """A job that ends only when the other one runs too; it leaves the cores it may use."""
        code = f"""
import os, pathlib, sys, time
folder = pathlib.Path({str(tmp_path)!r})
(folder / "began-{name}").touch()
end = time.monotonic() + 30
while not (folder / "began-{other}").exists():
    assert time.monotonic() < end
    time.sleep(0.05)
pathlib.Path(sys.argv[1]).write_text(repr(sorted(os.sched_getaffinity(0))))
"""
        return job(name, code, tmp_path / name)

    check = f"import pathlib; assert all((pathlib.Path({str(tmp_path)!r}) / name).exists() for name in 'ab')"
    last = Job(
        "c", [sys.executable, "-c", f"{check}; open({str(tmp_path / 'c')!r}, 'w')"], tmp_path / "c", (), ("a", "b")
    )
    run_jobs([last, meeting("a", "b"), meeting("b", "a")], tmp_path / "out", at_once=2)
    cores = sorted(os.sched_getaffinity(0))
    found = [(tmp_path / name).read_text() for name in "ab"]
    assert found == [repr(cores[::2]), repr(cores[1::2] or cores)] and (tmp_path / "c").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_and_the_same_command_goes_on(tmp_path, number):
    (tmp_path / "launchers").mkdir()
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "launchers/rank.py").write_text(RANK)
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "began")
        with pytest.raises(ValueError, match="another reproduction works in this folder"):
            run_jobs([], tmp_path / "out")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command again goes on" in errors
    assert (tmp_path / "saved").is_file() and not (tmp_path / "model").exists()
    before = read_json(tmp_path / "out" / "times.json")["train"]
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "model").read_text() == "whole"
    assert read_json(tmp_path / "out" / "times.json")["train"] > before, "the seconds of both attempts"


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)
