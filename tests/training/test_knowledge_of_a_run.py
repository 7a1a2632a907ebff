"""A run's facts: checked against its data before anything is computed, and kept apart from its words."""

import pytest
import torch
from building import build_data, write_recipe

from prealign_ds.knowledge.entities import spell
from prealign_ds.recipe import load_settings
from prealign_ds.training.environment import World
from prealign_ds.training.evaluations import evaluate_saved
from prealign_ds.training.run import Run

KNOWLEDGE = {"period_tokens": 96 * 140, "start_tokens": 96 * 30, "facts": 4, "frequencies": [1, 4]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    write_recipe(folder, sequence_length=96, knowledge=KNOWLEDGE, lm_tokens=96 * 340)
    return folder


def open_run(data, *overrides):
    return Run(load_settings(data / "recipe.yaml", list(overrides)), World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("knowledge.directions=[en->de]", "no corpus in de"),
        ("knowledge.period_tokens=1920", "of its 20 samples, at most 50% may be; raise knowledge.period_tokens"),
        ("knowledge.start_tokens=96000", "lower knowledge.period_tokens or start_tokens"),
        ("knowledge.templates={data}", "en.yaml: no such file"),
        ("knowledge.facts=6", "knowledge.facts"),
        ("knowledge.directions={{en->clone: 6}}", "knowledge.directions"),
        ("knowledge.directions={{en->de: 8}}", "no corpus in de"),
        ("knowledge.frequencies=[0]", "knowledge.frequencies.0"),
    ],
)
def test_mistakes_are_named_when_the_stream_is_opened(data, override, message):
    with pytest.raises(ValueError, match=message):
        open_run(data, override.format(data=data)).stream("align")


def test_both_stages_and_joint_training_are_told_the_same_facts(data):
    joint = open_run(data, "stages=[pretrain]", "codeswitch.mode=off")
    streams = [open_run(data).stream("align"), open_run(data).stream("pretrain"), joint.stream("pretrain")]
    for k in range(30, 340, 7):
        places = [stream.knowledge.locate(k) for stream in streams]
        assert len({place and (place.language, place.start, place.key) for place in places}) == 1
        assert (streams[0][k].targets == streams[2][k].targets).all()


def test_words_of_the_table_and_of_files_become_no_names(data):
    def names(run):
        return {spell(fact.subject, "en", "same").lower() for fact in run.knowledge.facts(0)}

    first = names(open_run(data))
    (data / "words.txt").write_text("\n".join(sorted(first)[:9]) + "\n")
    words = f"knowledge.words=[{data}/words.txt]"
    found = names(open_run(data, words))
    assert not found & set(sorted(first)[:9]) and len(found) == len(first)
    assert "the" in open_run(data).knowledge._known


def test_a_change_of_the_facts_changes_the_fingerprint(data):
    prints = set()
    for overrides in ([], ["knowledge.frequencies=[1,3]"], ["knowledge=null"]):
        run = open_run(data, *overrides)
        prints.add(run.fingerprint(run.stream("align")))
    assert len(prints) == 3


def test_a_run_without_facts_cannot_be_asked(data):
    with pytest.raises(ValueError, match="knowledge: nothing to measure it with; this run has perplexity"):
        evaluate_saved(open_run(data, "knowledge=null"), data, ["knowledge"], lambda: None)
