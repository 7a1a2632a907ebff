"""The programs of docs/own_trainer.md run as they stand, and do what stage 1 and stage 2 shall do."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from launching import deepspeed_command, finish
from plugging import Data, build_plug_data

from prealign_ds.stream.stream import CodeSwitchedStream, StreamCorpus

TEXT = (REPOSITORY / "docs/own_trainer.md").read_text()
PROGRAMS = dict(re.findall(r"^## (.+?)$.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
STARTED_BY_DEEPSPEED = {"Your own DeepSpeed loop", "accelerate"}
NUMBER = r"[-+]?\d+\.\d+(?:e[-+]?\d+)?"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    build_plug_data(folder / "data", documents=48)
    return Data(folder / "data")


def numbers(name, text):
    """The values of ``name=1.23`` or ``'name': '1.23'`` in their order."""
    return [float(value) for value in re.findall(rf"\b{name}(?:=|': ')({NUMBER})", text)]


def cosines(text):
    """Means over layers of what the programs print in their own ways."""
    tensors = re.findall(r"tensor\(\[(.*?)\]", text, re.S)
    found = [float(np.mean([float(value) for value in re.findall(NUMBER, tensor)])) for tensor in tensors]
    return found or numbers("cosine", text) or numbers("aligned_cosine", text)


def rate(text):
    """Share of the words that were switched: said by the program, or counted batch by batch."""
    if said := re.search(rf"share of words switched: ({NUMBER})", text):
        return float(said.group(1))
    switched = sum(map(int, re.findall(r"'switched\.\w+': (\d+)", text)))
    return switched / sum(map(int, re.findall(r"'num_words': (\d+)", text)))


def covered(data):
    """Share of the words that a switcher of ratio 1 would switch."""
    corpus = StreamCorpus("en", "en", data.tokens, 1.0, True, "")
    stream = CodeSwitchedStream([corpus], 63, 0, data.switcher, ratio=1.0)
    samples = [stream[index] for index in range(100)]
    return sum(sum(sample.num_switched.values()) for sample in samples) / sum(sample.num_words for sample in samples)


def test_every_way_has_a_program_of_less_than_40_lines():
    assert list(PROGRAMS) == ["Your own DeepSpeed loop", "Hugging Face's Trainer", "accelerate", "Megatron-Core"]
    assert TEXT.count("```python") == 4 and all(len(program.splitlines()) < 40 for program in PROGRAMS.values())


@pytest.fixture(scope="module")
def runs(data):
    """All programs, two at a time: most of their time is the import of libraries."""
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(PROGRAMS, threads.map(lambda title: run(data.folder.parent, title), PROGRAMS), strict=True))


def run(folder, title):
    """One program in ``folder``, started as its section says."""
    script = folder / f"train_{list(PROGRAMS).index(title)}.py"
    script.write_text(PROGRAMS[title])
    command = deepspeed_command(1, script) if title in STARTED_BY_DEEPSPEED else [sys.executable, script]
    paths = [str(REPOSITORY), str(REPOSITORY / "tests/plugins/without_gpu")]  # users have it installed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return finish(subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, **pipes), 400)


@pytest.mark.parametrize("title", PROGRAMS)
def test_the_program_aligns_and_switches(data, runs, title):
    done = runs[title]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    losses, similar = numbers("loss", done.stdout), cosines(done.stdout)
    assert losses[len(losses) // 2 - 1] < losses[0] and losses[-1] < losses[0]
    assert similar[-1] > similar[0] + 0.1
    assert 0.04 < rate(done.stdout) / covered(data) < 0.06
