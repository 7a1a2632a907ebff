"""Generation and script leakage with known answers: rigged models, a known rate, and generation without a cache."""

import numpy as np
import pytest
import torch
from conftest import Row, make_text

from prealign_ds.config import LeakageSettings, ModelSettings
from prealign_ds.corpus.clone import clone_ids
from prealign_ds.evaluation.generation import generate, sampling_noise
from prealign_ds.evaluation.leakage import ScriptLeakage
from prealign_ds.model import align_perfectly, build_model, model_config

V = 400


def model_of(tokenizer, architecture="gpt2", rig=None, scale=1.0, **changes):
    """A small model with En-Clone; ``rig`` changes its logits, ``scale`` sharpens them."""
    settings = ModelSettings(architecture=architecture, num_layers=2, hidden_size=32, num_heads=2, **changes)
    model = build_model(model_config(settings, 48, 2 * V, tokenizer), settings, seed=3).eval()

    def change(module, inputs, output):
        logits = output.logits * scale
        logits[..., 2 * V :] = 1e4  # ids of the padding, which nobody may draw
        output.logits = logits if rig is None else rig(logits)
        return output

    model.register_forward_hook(change)
    return model


def only(ids):
    def rig(logits):
        kept = torch.full_like(logits, -torch.inf)
        kept[..., ids] = 0.0
        return kept

    return rig


def leakage(tokenizer, model, languages=("clone",), samples=40, seed=1, held_out=None, **settings):
    held_out = held_out or {"en": Row(tokenizer.encode(make_text(3000)))}
    settings = LeakageSettings(samples=samples, **({"prompt_tokens": 4, "new_tokens": 8} | settings))
    probe = ScriptLeakage(held_out, "en", languages, tokenizer, 2 * V, 48, settings, seed)
    return probe.measure(lambda task: task(model), "cpu")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_generation_with_a_cache_equals_generation_without(tokenizer, architecture):
    model = model_of(tokenizer, architecture, scale=8.0, activation_checkpointing=True)
    prompts = np.random.default_rng(0).integers(0, V, (7, 5))
    noise = sampling_noise(4, np.arange(7), 12)
    expected = prompts
    for step in range(12):
        logits = model(input_ids=torch.from_numpy(expected), use_cache=False).logits[:, -1, : 2 * V].double()
        shares = logits.softmax(-1).detach().numpy()
        drawn = [
            int((np.cumsum(row) <= level * row.sum()).sum()) for row, level in zip(shares, noise[:, step], strict=True)
        ]
        expected = np.concatenate([expected, np.array(drawn)[:, None]], 1)
    assert len(np.unique(expected[:, 5:])) > 20
    for batch_size in (1, 3, 100):
        found = generate(lambda task: task(model), prompts, 12, 2 * V, batch_size, 4, "cpu")
        assert found.tolist() == expected[:, 5:].tolist()


def test_a_model_that_trains_is_refused_where_it_would_keep_no_cache(tokenizer):
    model = model_of(tokenizer, activation_checkpointing=True).train()
    with pytest.raises(AssertionError, match="evaluation mode"):
        generate(lambda task: task(model), np.ones((2, 3)), 2, 2 * V, 2, 0, "cpu")


def test_draws_follow_the_distribution_and_never_the_padding(tokenizer):
    shares = torch.tensor([0.6, 0.3, 0.1, 0.0])

    def rig(logits):
        kept = torch.full_like(logits, -torch.inf)
        kept[..., [7, 8, 500, 799]] = shares.log()
        kept[..., 800:] = 50.0
        return kept

    drawn = generate(lambda task: task(model_of(tokenizer, rig=rig)), np.zeros((200, 2)), 40, 2 * V, 50, 0, "cpu")
    counts = np.array([(drawn == token).sum() for token in (7, 8, 500, 799)])
    assert counts.sum() == drawn.size == 8000 and counts[3] == 0
    assert np.abs(counts / 8000 - shares.numpy()).max() < 4 * 0.0055


def test_noise_belongs_to_the_sample():
    whole = sampling_noise(3, np.arange(50), 20)
    assert np.array_equal(sampling_noise(3, np.array([17, 4]), 20), whole[[17, 4]])
    assert np.array_equal(sampling_noise(3, np.arange(50), 5), whole[:, :5])
    assert len(np.unique(whole)) == 1000 and not np.array_equal(sampling_noise(4, np.arange(50), 20), whole)
    assert 0.47 < whole.mean() < 0.53 and 0 <= whole.min() and whole.max() < 1


def test_a_model_that_always_leaks_and_one_that_never_does(tokenizer):
    eos = tokenizer.eos_token_id
    always = leakage(tokenizer, model_of(tokenizer, rig=only(range(V + 1, 2 * V))))
    assert always["clone"]["share"] == 1.0 and always["clone"]["n"] == always["clone"]["leaks"] == 40
    assert len(always["clone"]["examples"]) == 5 and always["clone"]["examples"][0]["text"].startswith("⟦")
    assert always["clone"]["examples"][0]["text"].endswith("⟧")
    never = leakage(tokenizer, model_of(tokenizer, rig=only(range(1, V))))
    assert never["clone"]["share"] == never["all"]["share"] == 0.0 and never["clone"]["examples"] == []
    special = leakage(tokenizer, model_of(tokenizer, rig=only([5, V + eos])))
    assert special["clone"]["share"] == 0.0, "special tokens have no clone"
    ended = leakage(tokenizer, model_of(tokenizer, rig=only([eos])))
    assert ended["clone"]["share"] == 0.0


def test_what_follows_the_end_of_text_does_not_count(tokenizer):
    def rig(logits):
        rig.calls += 1
        return only([tokenizer.eos_token_id] if rig.calls == 1 else [V + 5])(logits)

    rig.calls = 0
    found = leakage(tokenizer, model_of(tokenizer, rig=rig), samples=10, batch_size=10)
    assert rig.calls == 8 and found["clone"]["share"] == 0.0


def test_a_known_rate_of_leaks(tokenizer):
    """Each of 8 tokens is a clone with probability 0.1: 1 - 0.9 ** 8 = 57 % of the texts leak."""

    def rig(logits):
        kept = torch.full_like(logits, -torch.inf)
        kept[..., 5], kept[..., V + 5] = np.log(0.9), np.log(0.1)
        return kept

    found = leakage(tokenizer, model_of(tokenizer, rig=rig), samples=600, batch_size=600)["clone"]
    assert abs(found["share"] - (1 - 0.9**8)) < 4 * np.sqrt(0.57 * 0.43 / 600)
    low, high = found["interval"]
    assert low < found["share"] < high and high - low < 0.09


def test_perfect_alignment_draws_either_language_half_of_the_time(tokenizer):
    settings = ModelSettings(num_layers=2, hidden_size=32, num_heads=2)
    model = build_model(model_config(settings, 48, 2 * V, tokenizer), settings, seed=3).eval()
    align_perfectly(model, torch.from_numpy(clone_ids(tokenizer)))
    prompts = np.ones((50, 4))
    drawn = generate(lambda task: task(model), prompts, 40, 2 * V, 50, 0, "cpu")
    assert abs((drawn >= V).mean() - 0.5) < 0.05 and drawn.max() < 2 * V


def test_scripts_are_found_and_prompts_that_hold_them_do_not_count(tokenizer):
    cyrillic, chinese = (tokenizer.encode(text) for text in ("ж", "书"))
    assert len(cyrillic) == 2 and len(chinese) == 3, "bytes of one character"

    def rig(logits):
        rig.calls += 1
        return only([cyrillic[(rig.calls - 1) % 2]])(logits)

    rig.calls = 0
    text = tokenizer.encode(make_text(3000))
    text[: len(chinese)] = chinese
    model = model_of(tokenizer, rig=rig)
    languages = ["ru", "zh", "ar", "de"]
    found = leakage(tokenizer, model, languages, held_out={"en": Row(text)}, batch_size=40)
    assert found["ru"]["share"] == 1.0 and found["ru"]["n"] == 40 and "жжжж" in found["ru"]["examples"][0]["text"]
    assert found["zh"]["share"] == 0.0 and found["zh"]["n"] == 39, "a prompt that holds Chinese cannot leak it"
    assert found["ar"]["share"] == 0.0 and found["de"] is None and found["all"]["n"] == 39


def test_mistakes_are_found_before_anything_is_generated(tokenizer):
    model = model_of(tokenizer)
    with pytest.raises(ValueError, match=r"evaluation\.leakage: prompt_tokens 16 \+ new_tokens 128 .* 48 positions"):
        leakage(tokenizer, model, prompt_tokens=16, new_tokens=128)
    with pytest.raises(ValueError, match=r"data\.held_out has no en text"):
        leakage(tokenizer, model, held_out={"de": Row([1, 2])})
    with pytest.raises(ValueError, match="50 held-out tokens are too few for samples=40"):
        leakage(tokenizer, model, held_out={"en": Row(range(50))})
    with pytest.raises(ValueError, match="de, fr: nothing that its script tells from en"):
        leakage(tokenizer, model, ["de", "fr"])
