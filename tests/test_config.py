"""The configuration: strict, complete in its complaints, and the same after a round trip."""

import pytest
import yaml

from prealign_ds.config import CodeSwitchSettings
from prealign_ds.recipe import dump_settings, load_settings

MINIMAL = {
    "run_dir": "runs/x",
    "deepspeed": "ds_configs/cpu.json",
    "lm_tokens": "3.5M",
    "data": {"tokenizer": "tok", "corpora": [{"name": "en", "path": "p", "language": "en"}]},
    "table": {"path": "t.parquet"},
}


def write(tmp_path, **changes):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | changes))
    return path


def test_defaults_overrides_and_token_strings(tmp_path):
    settings = load_settings(
        write(tmp_path),
        ["model.num_layers=3", "data.corpora.0.weight=0.5", "pretrain.batch_tokens=1M", "stages=[pretrain]"],
    )
    assert settings.lm_tokens == 3_500_000 and settings.pretrain.batch_tokens == 1_000_000
    assert settings.model.num_layers == 3 and settings.data.corpora[0].weight == 0.5
    assert settings.stages == ["pretrain"] and settings.codeswitch.ratio == 0.05 and settings.align.temperature == 0.1


def test_off_is_a_mode_and_no_is_a_language(tmp_path):
    settings = load_settings(write(tmp_path), ["codeswitch.mode=off", "data.corpora.0.language=no"])
    assert settings.codeswitch.mode == "off" and settings.data.corpora[0].language == "no"
    settings = load_settings(write(tmp_path), ["codeswitch.mode=off", "model.tied_embeddings=false"])
    assert settings.model.tied_embeddings is False


def test_optional_evaluations_are_sections_of_their_own(tmp_path):
    settings = load_settings(write(tmp_path), ["evaluation.similarity={}", "evaluation.leakage.samples=50"]).evaluation
    assert settings.similarity.words == 1000 and settings.leakage.samples == 50 and settings.classification is None
    test = [
        "evaluation.classification.train=en.tsv",
        "evaluation.classification.test={de: de.tsv, ar: null, no: n.tsv}",
    ]
    settings = load_settings(write(tmp_path), test).evaluation.classification
    assert settings.test == {"de": "de.tsv", "ar": None, "no": "n.tsv"} and settings.seeds == [1, 2, 3]
    with pytest.raises(ValueError, match=r"evaluation\.leakage\.sample: unknown key; did you mean 'samples'"):
        load_settings(write(tmp_path), ["evaluation.leakage.sample=50"])


def test_code_switching_follows_its_schedule():
    switch = CodeSwitchSettings(ratio=0.1, schedule=[["1k", 0], ["2k", 1.0], [3000, 1.0], [3000, 0.5]])
    found = [switch.ratio_at(tokens) for tokens in (0, 1000, 1500, 2000, 2999, 3000, 10**12)]
    assert found == pytest.approx([0, 0, 0.05, 0.1, 0.1, 0.05, 0.05])
    assert CodeSwitchSettings(ratio=0.1).ratio_at(5) == 0.1
    by_language = CodeSwitchSettings(language_ratios={"de": 0.02, "ru": 0.03})
    assert by_language.total_ratio == pytest.approx(0.05)
    assert CodeSwitchSettings(**by_language.model_dump()) == by_language


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"language_ratios": {"de": 0.1}, "ratio": 0.2}, "take the place of ratio and language_weights"),
        ({"language_ratios": {"de": 0.1}, "language_weights": {"de": 1}}, "take the place of ratio"),
        ({"language_ratios": {"de": -0.1}}, "give a probability of 0 or more"),
        ({"language_ratios": {}}, "give a probability of 0 or more for one language or more"),
        ({"schedule": [[2000, 1], [1000, 0]]}, "must be in the order of their tokens"),
        ({"ratio": 0.5, "schedule": [[0, 1], [1000, 3]]}, "with a probability of 1.5, above 1"),
    ],
)
def test_code_switching_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        CodeSwitchSettings(**values)


def test_round_trip(tmp_path):
    settings = load_settings(write(tmp_path), ["codeswitch.mode=off", "codeswitch.schedule=[[0, 0.5], [1k, 1]]"])
    assert settings.codeswitch.schedule == [(0, 0.5), (1000, 1.0)]
    again = tmp_path / "again.yaml"
    again.write_text(dump_settings(settings))
    assert load_settings(again) == settings


def test_all_problems_at_once_with_the_nearest_known_key(tmp_path):
    path = write(tmp_path, modle={}, align={"temprature": 1}, codeswitch={"ratio": 2})
    with pytest.raises(ValueError) as error:
        load_settings(path, ["data.corpora.0.langauge=en"])
    text = str(error.value)
    assert "4 problem(s)" in text and str(path) in text
    assert "modle: unknown key; did you mean 'model'?" in text
    assert "align.temprature: unknown key; did you mean 'temperature'?" in text
    assert "data.corpora.0.langauge: unknown key; did you mean 'language'?" in text
    assert "codeswitch.ratio" in text and "found 2" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_layers", "write it as dotted.key=value"),
        ("model.num_layers=many", "model.num_layers: .*found 'many'"),
        ("data.corpora.7.name=x", "not a key or a place in a list"),
        ("model.num_heads=7", "num_heads 7 does not divide hidden_size 1024"),
        ("stages=[pretrain,align]", "stages: "),
        ("table=null", "table: missing"),
        ("data.corpora.0.clone=true", "clone: true and language: clone go together"),
        ("model.perfect_alignment=true", "needs an En-Clone corpus"),
        ("data.source_language=fr", "no corpus in fr"),
        ("lm_tokens=lots", "lm_tokens"),
    ],
)
def test_bad_values_are_named(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load_settings(write(tmp_path), [override])


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match=r"bad.yaml: not valid YAML"):
        load_settings(path)
    path.write_text("- 1")
    with pytest.raises(ValueError, match="a mapping of keys to values"):
        load_settings(path)
