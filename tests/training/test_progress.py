"""The progress bar: at a terminal of any width, with the log lines above it, and nowhere else."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from dataclasses import replace

import pytest
from building import build_data, read_lines, write_recipe
from launching import finish, start

from prealign_ds.training.plan import StagePlan
from prealign_ds.training.progress import progress_bar

PLAN = StagePlan("pretrain", 100, 1100, 10, 10, 1, 1, 2048)
_STEPS = """
import logging, sys, time
from dataclasses import replace
from prealign_ds.training.plan import StagePlan
from prealign_ds.training.progress import progress_bar
logging.basicConfig(level=logging.INFO, format="%(message)s")
plan = StagePlan("pretrain", 100, 1100, 10, 10, 1, 1, 2048)
first = int(sys.argv[1])
with progress_bar(plan, first, True) as show:
    for sample in range(first + 10, 1101, 10):
        time.sleep(0.01)
        if sample % 200 == 0:
            logging.info("line %d", sample)
        show(sample, None if sample < 300 else 2.5)
"""


def at_terminal(columns, command):
    """What ``command`` writes to a terminal so wide, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = start(command, stdout=theirs, stderr=theirs, text=False)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal's last user has left
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    finish(process)
    return b"".join(parts).decode(), process.returncode


def bars(text):
    """Every state of the bar."""
    return [part for part in re.split(r"[\r\n]+", text) if re.match(r"pretrain \d+%", part)]


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_it_fits_into_the_window(columns):
    text, code = at_terminal(columns, [sys.executable, "-c", _STEPS, 100])
    assert code == 0, text
    shown = bars(text)
    assert len(shown) > 3 and max(map(len, shown)) <= columns
    assert re.match(r"pretrain 100%.* loss 2\.500 +[\d.]+M/s +00:00", shown[-1])
    assert ("| 2.05M/2.05M tokens  loss" in shown[-1]) == (columns == 120)
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    assert [line for line in lines if line.startswith("line")] == [f"line {n}" for n in range(200, 1101, 200)]


def test_it_goes_on_where_a_run_does():
    text, code = at_terminal(100, [sys.executable, "-c", _STEPS, 600])
    assert code == 0, text
    assert [part.split()[1] for part in bars(text)][0] == "50%"
    assert "% |" in bars(text)[1] and bars(text)[1].split()[1] != "1%"


def test_files_pipes_and_other_ranks_get_none(capsys, monkeypatch):
    with progress_bar(PLAN, 100, True) as show:
        show(110, 1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(replace(PLAN, name="align"), 100, False) as show:
        show(110, 1.0)
    assert capsys.readouterr() == ("", "")


def test_a_training_at_a_terminal_of_forty_columns(tmp_path):
    build_data(tmp_path)
    recipe = write_recipe(tmp_path, evaluation={}, checkpoint={})
    command = [sys.executable, "launchers/pretrain.py", recipe, "stages=[pretrain]", "lm_tokens=1280"]
    text, code = at_terminal(40, command)
    assert code == 0, text[-3000:]
    shown = bars(text)
    assert max(map(len, shown)) <= 40
    loss = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["loss"]
    assert shown[-1].startswith(f"pretrain 100% loss {loss:.3f} ")
    for step in range(1, 6):
        assert len(re.findall(rf"\d pretrain {step}/5  loss ", text)) == 1
