"""The gauges of tools/benchmarks/alignment.py, and that both sides of it compute the same."""

import torch

from tools.benchmarks.alignment import HIDDEN, _ranks, peak_bytes

CPU = torch.device("cpu")


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
