"""Zero-shot transfer with known answers: a separable task, exchanged labels, and perfect alignment."""

import json

import pytest
import torch
from conftest import LABELS, write_labelled

from prealign_ds.config import ClassificationSettings, ModelSettings
from prealign_ds.corpus.clone import clone_ids
from prealign_ds.evaluation.classification import LastTokenClassifier, ZeroShotTransfer, _summary
from prealign_ds.model import align_perfectly, build_model, model_config

V = 400


def model_of(tokenizer, architecture="gpt2", clone=True, positions=24):
    settings = ModelSettings(architecture=architecture, num_layers=2, hidden_size=32, num_heads=2)
    return build_model(model_config(settings, positions, (2 if clone else 1) * V, tokenizer), settings, seed=3)


def transfer(tokenizer, model, train, test, **settings):
    options = {"seeds": [1], "epochs": 4, "batch_size": 16, "learning_rate": 3e-3} | settings
    return ZeroShotTransfer(tokenizer, model.config, ClassificationSettings(train=train, test=test, **options))


@pytest.fixture
def files(tmp_path):
    return {
        "train": write_labelled(tmp_path / "train.tsv", 200, 0),
        "exchanged": write_labelled(tmp_path / "exchanged.tsv", 200, 0, names=LABELS[::-1]),
        "noisy": write_labelled(tmp_path / "noisy.tsv", 200, 0, noise=0.4),
        "test": write_labelled(tmp_path / "test.tsv", 101, 1),
    }


def test_a_separable_task_is_learned_and_exchanged_labels_are_all_wrong(tokenizer, files):
    model = model_of(tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    test = {"en": files["test"], "ar": None}
    found = transfer(tokenizer, model, files["train"], test, seeds=[1, 2]).measure(model)
    assert found["accuracy"]["en"] == {"mean": 1.0, "std": 0.0, "per_seed": [1.0, 1.0], "n": 101, "truncated": 0}
    assert found["accuracy"]["ar"] is None and found["labels"] == ["music", "river"]
    assert json.loads(json.dumps(found)) == found
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "a copy is trained"
    wrong = transfer(tokenizer, model, files["exchanged"], test).measure(model)
    assert wrong["accuracy"]["en"]["per_seed"] == [0.0]


def test_perfect_alignment_gives_the_clone_exactly_the_accuracy_of_english(tokenizer, files):
    model = model_of(tokenizer)
    align_perfectly(model, torch.from_numpy(clone_ids(tokenizer)))
    model.get_input_embeddings().weight.requires_grad_(False)  # training on English alone would part the two
    test = {"en": files["noisy"], "clone": files["noisy"]}
    options = {"epochs": 1, "seeds": [1, 2, 3], "learning_rate": 1e-3}
    found = transfer(tokenizer, model, files["noisy"], test, **options).measure(model)["accuracy"]
    assert found["clone"]["per_seed"] == found["en"]["per_seed"]
    assert 0.45 < found["en"]["mean"] < 0.8 and found["en"]["std"] > 0, "the labels of 40 % are exchanged"


def test_a_clone_that_was_never_aligned_is_near_chance(tokenizer, files):
    model = model_of(tokenizer)
    test = {"en": files["test"], "clone": files["test"]}
    found = transfer(tokenizer, model, files["train"], test).measure(model)["accuracy"]
    assert found["en"]["mean"] == 1.0 and 0.25 < found["clone"]["mean"] < 0.75


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_the_last_token_decides_whatever_is_padded_behind(tokenizer, architecture):
    model = model_of(tokenizer, architecture)
    classifier = LastTokenClassifier(model.base_model, 3, seed=0).eval()
    rows = [torch.tensor([5, 6, 0]), torch.tensor([7, 8, 9, 5, 6, 0]), torch.tensor([3])]
    with torch.no_grad():
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        together = classifier(padded, torch.tensor([3, 6, 1]))
        for row, logits in zip(rows, together, strict=True):
            states = model.base_model(input_ids=row[None]).last_hidden_state
            assert torch.allclose(classifier.head(states[0, -1]), logits, atol=1e-5)


def test_texts_end_and_pairs_part_with_the_end_of_text_and_are_cut(tokenizer, tmp_path):
    rows = [{"label": 0, "premise": "old piano river " * 5, "hypothesis": "the street"}]
    rows += [{"label": 1, "premise": "a", "hypothesis": "b"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = str(tmp_path / "pairs.jsonl")
    task = transfer(tokenizer, model_of(tokenizer), path, {"clone": path}, batch_size=2, max_tokens=12)
    eos = tokenizer.eos_token_id
    premise, hypothesis = (tokenizer.encode(rows[0][name]) for name in ("premise", "hypothesis"))
    kept = 12 - 2 - len(hypothesis)
    assert 0 < kept < len(premise) and task._train.num_truncated == 1
    assert task._train.rows[0].tolist() == [*premise[:kept], eos, *hypothesis, eos]
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    assert task._train.rows[1].tolist() == [a, eos, b, eos]
    assert task._tests["clone"].rows[1].tolist() == [V + a, eos, V + b, eos], "special tokens are shared"


def test_every_epoch_is_a_permutation_without_its_incomplete_batch(tokenizer, files):
    task = transfer(tokenizer, model_of(tokenizer), files["train"], {"en": None}, epochs=2, batch_size=48)
    batches = list(task._batches(7))
    assert [len(batch) for batch in batches] == [48] * 8
    for epoch in (batches[:4], batches[4:]):
        assert len({place for batch in epoch for place in batch.tolist()}) == 192
    assert [b.tolist() for b in task._batches(7)] == [b.tolist() for b in batches]
    assert batches[0].tolist() != batches[4].tolist() != next(task._batches(8)).tolist()


def test_mean_and_spread_over_seeds():
    assert _summary([0.5, 0.7, 0.9]) == {
        "mean": pytest.approx(0.7),
        "std": pytest.approx(0.2),
        "per_seed": [0.5, 0.7, 0.9],
    }
    assert _summary([0.5])["std"] is None


def test_mistakes_are_found_before_anything_is_trained(tokenizer, files, tmp_path):
    model = model_of(tokenizer)
    (tmp_path / "other.tsv").write_text("music\tx\ncheese\ty\n")
    (tmp_path / "one.tsv").write_text("music\tx\n" * 20)
    with pytest.raises(ValueError, match=r"other\.tsv:2: label 'cheese' does not occur"):
        transfer(tokenizer, model, files["train"], {"de": str(tmp_path / "other.tsv")})
    with pytest.raises(ValueError, match=r"absent\.tsv: no such file"):
        transfer(tokenizer, model, files["train"], {"de": "absent.tsv"})
    with pytest.raises(ValueError, match="all texts have the label 'music'"):
        transfer(tokenizer, model, str(tmp_path / "one.tsv"), {"en": None})
    with pytest.raises(ValueError, match="200 texts do not fill .*batch_size=201"):
        transfer(tokenizer, model, files["train"], {"en": None}, batch_size=201)
    with pytest.raises(ValueError, match=r"max_tokens: 25: the model has 24 positions"):
        transfer(tokenizer, model, files["train"], {"en": None}, max_tokens=25)
    with pytest.raises(ValueError, match="has no En-Clone"):
        transfer(tokenizer, model_of(tokenizer, clone=False), files["train"], {"clone": files["test"]})
