"""The installed package has all that a clone has, and works in any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from conftest import REPOSITORY

SHIPPED = ("prealign_ds", "ds_configs", "launchers", "tools")


def test_an_installed_package_is_a_whole_one(tmp_path):
    source = tmp_path / "source"
    for name in SHIPPED:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)

    # What is beside prealign_ds/ in a clone is within it there; benchmarks need a clone.
    files = [(name, path) for name in SHIPPED for path in (source / name).rglob("*") if path.is_file()]
    expected = {Path(*path.relative_to(source).parts[name == "prealign_ds" :]) for name, path in files}
    there = {path.relative_to(installed / "prealign_ds") for path in installed.rglob("prealign_ds/**/*")}
    assert not {path for path in expected - there if path.parts[:2] != ("tools", "benchmarks")}
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"prealign_ds"}

    command = ["-m", "prealign_ds.tools.plan", "launchers/recipes/en_clone_150m.yaml", "--gpus", "H100"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *command], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{installed}/prealign_ds/ds_configs/zero1_bf16.json" in done.stdout
