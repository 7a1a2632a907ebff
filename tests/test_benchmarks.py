"""The benchmarks run, small, and report what they promise."""

import json

import pytest
import torch
from launching import run_alone

from prealign_ds.files import read_json
from tools import bench
from tools.benchmarks import fetch, growth, tokenization
from tools.benchmarks.alignment import HIDDEN, _ranks, peak_bytes

CPU = torch.device("cpu")


def test_fetch(tmp_path, monkeypatch):
    for name, value in {"TEXT_CHARACTERS": 400_000, "VOCABULARY": 2_000, "BLOCK": 20, "MICRO_BATCHES": 10}.items():
        monkeypatch.setattr(fetch, name, value)
    stream = fetch.build_stream(tmp_path)
    found = fetch.measure_fetch(stream, tmp_path / "text", 1)
    speeds = {name: spread["median"] for name, spread in found.items()}
    ratio = speeds.pop("fetch_vs_megatron")
    assert ratio == pytest.approx(speeds["megatron_tokens_per_s"] / speeds["fetch_tokens_per_s"])
    assert min(speeds.values()) > 1000
    assert all(set(spread) == {"min", "median", "max"} for spread in found.values())
    assert fetch.measure_wait(stream, 1)["loader_wait_share"]["max"] < 0.2


def test_growth(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TEXT_CHARACTERS", 400_000)
    monkeypatch.setattr(fetch, "VOCABULARY", 2_000)
    for name, value in {"TOKENS_READ": 50_000, "TEXT_MEGABYTES": (0.2, 0.4), "TABLE_WORDS": (1_000, 3_000)}.items():
        monkeypatch.setattr(growth, name, value)
    found = growth.measure_fetch_growth(tmp_path, 1) | growth.measure_table_growth(1)
    for costs in found.values():
        assert len(costs["sizes"]) == len(costs["cost"]) and min(costs["cost"]) > 0
    assert found["fetch_by_corpus_tokens"]["sizes"][2] == 64 * found["fetch_by_corpus_tokens"]["sizes"][0]
    assert abs(found["fetch_by_corpus_tokens"]["exponent"]) < 0.3 < found["fetch_by_sequence_length"]["exponent"]
    assert found["table_by_pairs"]["exponent"] > 0.3


def test_a_large_index_is_not_read_when_it_is_opened(tmp_path):
    found = fetch.measure_index(tmp_path, 1)
    assert (tmp_path / "large1000000.bin").stat().st_size == 2_000_000_000
    assert found["index_rss_mb"]["max"] < 20 and found["index_open_s"]["max"] < 2


def test_tokenization(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "VOCABULARY", 1_000)
    found = tokenization.measure_tokenization(tmp_path, 1, megabytes=0.4)
    growth = found.pop("growth")["tokenize_by_megabytes"]
    assert growth["sizes"] == pytest.approx([0.1, 0.2, 0.4], rel=0.2) and len(growth["cost"]) == 3
    assert found["tokenize_vs_raw"]["median"] == pytest.approx(
        found["tokenize_mb_per_s"]["median"] / found["raw_mb_per_s"]["median"]
    )
    assert 0 < found["tokenize_feeding_share"]["median"] <= 1 + 1e-9


def test_saving(tmp_path):
    done = run_alone("tools/benchmarks/saving.py", "--scratch", tmp_path, "--repeats", 1, "--millions", 1)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert found["saving_bytes"] > 16_000_000 and not list(tmp_path.iterdir())
    assert found["saving_vs_bare"]["median"] == pytest.approx(
        found["saving_seconds"]["ours"]["median"] / found["saving_seconds"]["bare"]["median"]
    )


def test_bench_collects_and_goes_on(tmp_path, monkeypatch, capsys):
    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)

    figure = "import sys\nprint('noise')\nprint('{\\n  \"speed\": ' + sys.argv[2] + '\\n}')\n"
    write("fast", figure)
    write("slow", "raise SystemExit(1)")
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "NAMES", ["fast", "slow"])
    monkeypatch.setattr("sys.argv", ["bench.py", "--repeats", "3", "--output", str(tmp_path / "out" / "bench.json")])
    with pytest.raises(ValueError, match=r"slow\.py --repeats 3: ended with 1"):
        bench.main()
    write("fast", "raise SystemExit('measured twice')")
    write("slow", figure.replace("speed", "delay"))
    bench.main()
    found = read_json(tmp_path / "out" / "bench.json")
    assert (found["speed"], found["delay"]) == (3, 3) and set(found["measured"]) == {"fast", "slow"}
    assert "median" in capsys.readouterr().out


def test_peak_memory_is_exact_to_the_byte(tmp_path):
    held = torch.empty(5000)

    def step():
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        return torch.empty(200), second

    assert peak_bytes(step, CPU, tmp_path) == 4 * 1500
    assert peak_bytes(lambda: held.view(50, 100).sort(), CPU, tmp_path) >= (4 + 8) * 5000
    assert not list(tmp_path.iterdir())


def test_temporaries_inside_operators_count(tmp_path):
    logits = torch.randn(100, 200)
    assert peak_bytes(lambda: logits.logsumexp(1), CPU, tmp_path) >= 4 * 100 * 200


def test_both_sides_agree_on_two_ranks_and_traffic_is_counted(tmp_path):
    found = _ranks(tmp_path, 2, "authors", 64, 3, 1)
    for rank in found:
        assert rank["ours"]["traffic"] == [[2, 4 * 3 * 64 * (HIDDEN + 1)]], "rows and denominators, in one group"
        assert rank["theirs"]["traffic"] == [[3, 4 * 3 * 64 * HIDDEN]]
        assert rank["theirs"]["bytes"][0] >= 4 * 3 * 64 * HIDDEN
