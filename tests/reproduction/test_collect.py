"""results.json from folders of runs with made-up numbers, some of them not done."""

import pytest
from made_up import fill, write_preset

from prealign_ds.files import write_json
from prealign_ds.recipe import load_settings
from prealign_ds.reproduction.collect import collect
from prealign_ds.reproduction.paper import paper_results
from prealign_ds.reproduction.preset import load_preset


@pytest.fixture
def results(tmp_path):
    path = write_preset(tmp_path)
    fill(tmp_path / "out", tmp_path / "recipe.yaml")
    splits = {"clone": {"tokens": 500}}
    write_json(tmp_path / "tokens" / "manifest.json", {"splits": splits})
    write_json(tmp_path / "out" / "times.json", {"train en_clone joint": 60.0})
    return collect("own", load_preset(str(path)), tmp_path / "out")


def row(ppl):
    """What joint and prealign have, but for their perplexities."""
    return {
        "ppl": {"en": 48.0, "clone": ppl},
        "zs_clt": {"en": 75.0, "clone": 50.0},
        "zs_clt_std": {"en": 6.25},
        "clka": {"clone": {"mean": 37.5, "ci95": pytest.approx([13.68, 69.43], abs=0.01), "n": 8}},
        "leakage": {"clone": {"mean": 25.0, "ci95": [12.5, 50.0], "n": 8}},
    }  # fmt: skip


def test_tables_hold_what_finished_runs_found(results):
    joint, prealign = row(190.0), row(95.0)
    only = {"ppl": {"clone": 70.0}, "best_tokens": 2000, "epochs": 4.0}
    assert results["table1"] == {"only_tgt": only, "joint": joint, "prealign": prealign}
    assert results["table2"] == results["table3"] == {"joint": joint, "prealign": prealign}
    assert results["table4"] == {"prealign": prealign}, "a run that is not finished has no row"
    assert results["table5"] == {}


def test_figures_are_series_over_tokens(results):
    assert results["figure4"] == {slug: [[1000, pytest.approx(0.2)]] for slug in ("joint", "prealign")}
    assert results["figure4_random"] == {slug: [[1000, pytest.approx(-0.2)]] for slug in ("joint", "prealign")}
    assert results["figure4_embeddings"] == {slug: [[1000, 0.1]] for slug in ("joint", "prealign")}
    assert results["figure5"] == {"prealign": {"clone": {"seen": 150.0, "unseen": 300.0}}}
    assert results["figure5_joint"] == {
        "prealign_beta25": {"clone": {"seen": 160.0, "unseen": 310.0}},
        "prealign": {"clone": {"seen": 150.0, "unseen": 300.0}},
    }
    assert results["perplexity_ratio"] == {
        "en": [[1000, pytest.approx(1.0)], [2000, pytest.approx(1.0)]],
        "clone": [[1000, pytest.approx(0.5)], [2000, pytest.approx(0.5)]],
    }


def test_figure_3_has_directions_frequencies_and_periods(results):
    found = results["figure3"]["prealign"]
    assert set(found) == {"en->en", "en->clone"} and set(found["en->en"]) == {"1", "all"}
    assert found["en->en"]["1"]["mean"] == 75.0 and found["en->en"]["1"]["n"] == 8
    assert found["en->clone"]["all"]["periods"] == [[2000, 25.0], [2000, 50.0]]


def test_settings_say_what_ran_and_what_was_left_out(results, tmp_path):
    settings = results["settings"]
    assert settings["preset"] == "own" and settings["seconds"] == {"train en_clone joint": 60.0}
    assert list(settings["runs"]["en_clone"]) == ["joint", "prealign", "only_tgt", "prealign_beta25"]
    finished = {slug: run["is_finished"] for slug, run in settings["runs"]["en_clone"].items()}
    assert finished == {"joint": True, "prealign": True, "only_tgt": True, "prealign_beta25": False}
    run = settings["runs"]["en_clone"]["prealign"]
    assert run["lm_tokens"] == 5120 and run["align_tokens"] == 2560 and run["seed"] == 5
    assert run["text_tokens"] == {"en": 3840, "clone": 1280}
    assert settings["left_out"].keys() == {"real"} and "en-de.tsv: not there" in settings["left_out"]["real"]
    assert load_settings(tmp_path / "out/runs/en_clone/only_tgt/config.yaml").lm_tokens == 5120


def test_no_run_at_all_leaves_every_table_empty(tmp_path):
    found = collect("own", load_preset(str(write_preset(tmp_path))), tmp_path / "out")
    assert not any(found[key] for key in found if key.startswith(("table", "figure")))


def test_the_papers_numbers():
    paper = paper_results("1.3b")
    assert paper["table1"]["only_tgt"] == {"ppl": {"clone": 47.2}}
    assert paper["table1"]["prealign"]["zs_clt"] == {"en": 80.1, "clone": 79.3}
    assert paper["table2"]["joint_cs"]["clka"]["clone"]["mean"] == 32.6
    assert paper["table3"]["prealign_vanilla_cs"]["leakage"]["clone"]["mean"] == 4.17
    assert paper["table4"]["prealign_beta50"]["ppl"]["clone"] == 16.8
    assert paper["table5"]["joint"]["ppl"] == {"en": 15.8, "zh": 62.2, "de": 24.0, "ar": 27.7, "ru": 31.2}
    clka = {language: cell["mean"] for language, cell in paper["table5"]["prealign"]["clka"].items()}
    assert clka == {"zh": 54.3, "de": 53.1, "ar": 52.4, "ru": 50.1}
    assert paper_results("150m")["table5"]["joint"]["zs_clt"]["zh"] == 24.6
