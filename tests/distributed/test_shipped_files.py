"""Every shipped recipe and DeepSpeed configuration is parsed, and run where this machine can."""

import re

import pytest
from conftest import REPOSITORY
from launching import launch_forked, usable_ds_configs

from prealign_ds.files import read_json, write_json
from prealign_ds.recipe import load_settings
from prealign_ds.training.engine import engine_config, read_ds_config
from prealign_ds.training.kernels import Kernels
from prealign_ds.training.plan import plan_stages

DS_CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))
RECIPES = sorted((REPOSITORY / "launchers/recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("config", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_fits_every_ds_config(recipe, config):
    settings = load_settings(recipe, [f"deepspeed={config}"])
    for plan in plan_stages(settings, settings.world_size or 1):
        found = engine_config(read_ds_config(config), plan, getattr(settings, plan.name).optimizer, Kernels())
        assert found["train_batch_size"] == plan.batch_samples and found["optimizer"]["params"]["lr"] > 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_launch_line_in_a_recipe_s_head_gives_each_rank_whole_micro_batches(recipe):
    for nodes in map(int, re.findall(r"^#.* --nodes=(\d+) ", recipe.read_text(), re.MULTILINE)):
        assert plan_stages(load_settings(recipe), 8 * nodes)


@pytest.mark.parametrize("offload", [False, pytest.param(True, marks=pytest.mark.long)])  # it compiles for minutes
def test_every_ds_config_that_a_cpu_can_run_trains_and_gives_fp32_weights(tmp_path, offload):
    usable = [path for path in usable_ds_configs(tmp_path) if "fp16" not in path.name]  # a CPU has no fp16 training
    paths = [path for path in usable if path.name == "cpu_fp32.json" or ("offload" in str(read_json(path))) == offload]
    launch_forked(2, "tests/distributed/worker_ds_configs.py", tmp_path / "losses.json", *paths, timeout=900)
    results = read_json(tmp_path / "losses.json")
    assert set(results) == set(map(str, paths))
    for name, losses in results.items():
        assert losses == pytest.approx(results[str(REPOSITORY / "ds_configs/cpu_fp32.json")], rel=0.02), name
        assert losses[-1] < losses[0] - 0.3, name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"train_batch_size": 8}, "train_batch_size is derived from the recipe; remove it there"),
        ({"optimizer": {"type": "Lion"}}, "optimizer comes from the recipe"),
        ({"bf16": {"enabled": True}}, "bf16 without ZeRO gives no fp32 weights back"),
        ({"zero_optimization": {"stage": 0}, "fp16": {"enabled": True}}, "fp16 without ZeRO gives no fp32 weights"),
    ],
)
def test_a_ds_config_that_cannot_work_is_refused(tmp_path, config, message):
    write_json(tmp_path / "own.json", config)
    with pytest.raises(ValueError, match=rf"own\.json: {message}"):
        read_ds_config(tmp_path / "own.json")
