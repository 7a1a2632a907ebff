"""The benchmarks run, small, and report what they promise."""

import json

import pytest
from launching import run_alone

from tools import bench
from tools.benchmarks import fetch


def test_fetch(tmp_path, monkeypatch):
    for name, value in {"TEXT_CHARACTERS": 400_000, "VOCABULARY": 2_000, "BLOCK": 20}.items():
        monkeypatch.setattr(fetch, name, value)
    found = fetch.measure_fetch(tmp_path, 1)
    speeds = {name: spread["median"] for name, spread in found.items()}
    ratio = speeds.pop("fetch_vs_megatron")
    assert ratio == pytest.approx(speeds["megatron_tokens_per_s"] / speeds["fetch_tokens_per_s"])
    assert min(speeds.values()) > 1000
    assert all(set(spread) == {"min", "median", "max"} for spread in found.values())


def test_a_large_index_is_not_read_when_it_is_opened(tmp_path):
    found = fetch.measure_index(tmp_path, 1)
    assert (tmp_path / "large.bin").stat().st_size == 2_000_000_000
    assert found["index_rss_mb"]["max"] < 20 and found["index_open_s"]["max"] < 2


def test_saving(tmp_path):
    done = run_alone("tools/benchmarks/saving.py", "--scratch", tmp_path, "--repeats", 1, "--millions", 1)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert found["saving_bytes"] > 16_000_000 and not list(tmp_path.iterdir())
    assert found["saving_vs_bare"]["median"] == pytest.approx(
        found["saving_seconds"]["ours"]["median"] / found["saving_seconds"]["bare"]["median"]
    )


def test_bench_collects_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    script = tmp_path / "speed.py"
    script.write_text("import sys\nprint('noise')\nprint('{\\n  \"speed\": ' + sys.argv[2] + '\\n}')\n")
    assert bench.measure("speed", 3) == {"speed": 3}
    script.write_text("raise SystemExit(1)")
    with pytest.raises(ValueError, match=r"speed\.py --repeats 3: ended with 1"):
        bench.measure("speed", 3)
