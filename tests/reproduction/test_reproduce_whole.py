"""The command, whole, on a small text: real runs and evaluations, the report, and again."""

import json
import subprocess
import sys

import pytest
from building import build_data, write_recipe
from conftest import REPOSITORY

from prealign_ds.files import read_json


@pytest.mark.long
def test_reproduce_and_again(tmp_path):
    build_data(tmp_path)
    experiment = {
        "recipe": str(write_recipe(tmp_path)),
        "overrides": ["knowledge.period_tokens=1280", "knowledge.facts=4", "knowledge.frequencies=[1]"],
        "systems": ["joint", "only_tgt", "prealign_beta50"],
    }
    preset = tmp_path / "preset.yaml"
    preset.write_text(json.dumps({"title": "small", "en_clone": experiment}))
    command = [sys.executable, "tools/reproduce.py", "--preset", str(preset), "--output", str(tmp_path / "out")]
    first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-3000:]
    results = read_json(tmp_path / "out" / "results.json")
    joint, only = results["table1"]["joint"], results["table1"]["only_tgt"]
    assert joint["ppl"].keys() == {"en", "clone"} and 0 <= joint["clka"]["clone"]["mean"] <= 100
    assert joint["clka"]["clone"]["n"] == 4 * 4, "four facts in each of four periods"
    assert only["ppl"].keys() == {"clone"} and only["epochs"] > 0
    groups = results["figure5"]["prealign_beta50"]["clone"], results["figure5_joint"]["prealign_beta50"]["clone"]
    assert all(group.keys() == {"seen", "unseen"} for group in groups) and groups[0] != groups[1]
    assert "<h2>Table 5" in (tmp_path / "out" / "report.html").read_text()
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert again.stdout.count(": done\n") == 7 and "began" not in again.stdout
    assert read_json(tmp_path / "out" / "results.json") == results
