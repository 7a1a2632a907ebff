"""On a GPU: every configuration for GPUs trains, gives fp32 weights, and agrees with fp32."""

import pytest
import torch
from conftest import REPOSITORY
from launching import launch

from prealign_ds.files import read_json


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_gpu_configuration_trains_on_a_gpu(tmp_path):
    names = sorted(path.name for path in (REPOSITORY / "ds_configs").glob("zero*.json"))
    launch(1, "tests/distributed/worker_ds_configs.py", tmp_path / "losses.json", "cpu_fp32.json", *names)
    results = read_json(tmp_path / "losses.json")
    for name in names:
        assert results[name] == pytest.approx(results["cpu_fp32.json"], rel=0.02), name
