"""The quickstart, whole: every command, both runs, the summary. Small, and on the user's own text."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY, make_text


@pytest.mark.long
def test_quickstart_on_ones_own_text_and_again(tmp_path):
    text = tmp_path / "own-text.txt"
    text.write_text("\n\n".join(make_text(150, seed) + f" word{seed} {seed}abc" for seed in range(4000)))
    environment = os.environ | {"SCALE": "0.03", "CORPUS": str(text)}
    command = [sys.executable, "tools/quickstart.py"]
    first = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-3000:]
    runs = REPOSITORY / "runs" / f"quickstart-{text.name}"
    summary = json.loads((runs / "summary.json").read_text())
    assert set(summary["perplexity"]) == {"joint", "prealign"}
    assert all(set(found) == {"en", "clone"} for found in summary["perplexity"].values())
    assert summary["tokens"]["joint"] == summary["tokens"]["prealign"] > 0
    assert set(summary["seconds"]) == {"total", "prepare", "joint", "prealign"}
    assert "held-out" in (runs / "compare.html").read_text()
    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert "launchers/pretrain.py" not in again.stdout, "what is done is not done again"
    assert json.loads((runs / "summary.json").read_text()) == summary
