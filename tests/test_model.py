"""The model: vocabulary, loss, perfect alignment, and what word representations are made of."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from prealign_ds.alignment.batches import WordBatches
from prealign_ds.alignment.representations import word_representations
from prealign_ds.alignment.rows import TableRows
from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import ModelSettings
from prealign_ds.corpus.clone import clone_ids
from prealign_ds.model import (
    align_perfectly,
    build_model,
    lm_loss_sum,
    load_weights,
    model_config,
    num_parameters,
    tied_weight_names,
    vocabulary_size,
)
from prealign_ds.stream.stream import IGNORED, labels_for_internal_shift

ARCHITECTURES = ["gpt2", "llama", "gpt_neox"]


def small(tokenizer, architecture="gpt2", clone=False, **changes):
    settings = ModelSettings(architecture=architecture, num_layers=2, hidden_size=32, num_heads=2, **changes)
    config = model_config(settings, 32, vocabulary_size(tokenizer, clone), tokenizer)
    return build_model(config, settings, seed=1).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_architecture_has_no_dropout_and_a_padded_vocabulary(tokenizer, architecture, tied):
    model = small(tokenizer, architecture, clone=True, tied_embeddings=tied)
    assert model.config.vocab_size == 896 and model.get_output_embeddings().weight.shape[0] == 896  # 800 padded
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == tied and bool(tied_weight_names(model)) == tied
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    inner = num_parameters(model, embeddings=False)
    assert 20_000 < inner < 40_000 and num_parameters(model) >= inner + 896 * 32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_representations_are_look_up_raw_blocks_final_norm_and_head_rows(tokenizer, architecture):
    model = small(tokenizer, architecture, tied_embeddings=False)
    pairs = [Pair("piano", "de", "Klavier", "t"), Pair("a", "de", "Haustür", "t"), Pair("the", "de", "x", "t")]
    rows = TableRows(AlignmentTable.from_pairs(None, pairs), tokenizer)
    batch = WordBatches(rows, 3, 1, 0).batch(0)
    assert len(batch.groups) == 3, "rows are encoded in groups of similar length"
    blocks = []
    layers = getattr(model.base_model, "h", None) or model.base_model.layers
    hooks = [
        layer.register_forward_hook(lambda m, i, o: blocks.append(o[0] if isinstance(o, tuple) else o))
        for layer in layers
    ]
    with torch.no_grad():
        states = word_representations(model, batch)
        for hook in hooks:
            hook.remove()
        assert len(states) == 4
        for place, (ids, mask) in enumerate(zip(batch.input_ids_rT, batch.mask_rT, strict=True)):
            alone = ids[: int(mask.sum())][None]  # each word alone, without padding
            blocks.clear()
            hooks = [
                layer.register_forward_hook(lambda m, i, o: blocks.append(o[0] if isinstance(o, tuple) else o))
                for layer in layers
            ]
            last = model.base_model(input_ids=alone, use_cache=False).last_hidden_state
            for hook in hooks:
                hook.remove()
            expected = [
                model.get_input_embeddings().weight[alone[0]].mean(0),
                blocks[0].reshape(-1, 32)[: alone.shape[1]].mean(0),
                last[0].mean(0),
                model.get_output_embeddings().weight[alone[0]].mean(0),
            ]
            for layer in range(4):
                assert torch.allclose(states[layer][place], expected[layer], atol=1e-5), (architecture, layer)
            assert not torch.allclose(blocks[1].reshape(-1, 32).mean(0), last[0].mean(0), atol=1e-3), "the norm is in"


def test_loss_gives_the_padding_no_probability(tokenizer):
    logits = torch.zeros(1, 2, 896)
    assert lm_loss_sum(logits, torch.tensor([[5, -100]]), 800).item() == pytest.approx(np.log(800))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_of_a_model_that_shifts_internally_give_the_loss_of_the_streams_targets(tokenizer, architecture):
    model = small(tokenizer, architecture)
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 400, (3, 12))
    targets = rng.integers(0, 400, (3, 12))
    targets[0, 2:7] = targets[2, 11] = IGNORED
    shifted_inputs, labels = map(torch.from_numpy, labels_for_internal_shift(inputs, targets))
    with torch.no_grad():
        theirs = model(input_ids=shifted_inputs, labels=labels, num_items_in_batch=torch.tensor(1.0)).loss
        logits = model(input_ids=torch.from_numpy(inputs)).logits
    # transformers normalises over the padded vocabulary as well
    ours = lm_loss_sum(logits, torch.from_numpy(targets), model.config.vocab_size)
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_perfect_alignment_makes_states_and_logits_of_original_and_clone_identical(tokenizer, tied):
    model = small(tokenizer, clone=True, tied_embeddings=tied)
    ids = torch.from_numpy(clone_ids(tokenizer))
    align_perfectly(model, ids)
    text = torch.tensor([tokenizer.encode("he plays the old piano", add_special_tokens=False)])
    with torch.no_grad():
        original = model(input_ids=text, output_hidden_states=True)
        clone = model(input_ids=ids[text], output_hidden_states=True)
    for a, b in zip(original.hidden_states, clone.hidden_states, strict=True):
        assert torch.equal(a, b)
    ordinary = [i for i in range(400) if i not in tokenizer.all_special_ids]
    assert torch.equal(original.logits, clone.logits)
    assert torch.equal(original.logits[..., ordinary], original.logits[..., ids[ordinary]])


def test_special_tokens_are_shared_by_the_clone(tokenizer):
    ids = clone_ids(tokenizer)
    assert ids[tokenizer.eos_token_id] == tokenizer.eos_token_id
    assert (np.delete(ids, tokenizer.eos_token_id) == np.delete(np.arange(400), tokenizer.eos_token_id) + 400).all()


def test_same_seed_same_weights_and_the_global_generator_is_left_alone(tokenizer):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    a, b = small(tokenizer), small(tokenizer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_gpt2s_projections_into_the_residual_stream_begin_smaller(tokenizer):
    """By the root of their number; transformers before 5.15 forgets it."""
    for block in small(tokenizer).transformer.h:
        for part in (block.attn, block.mlp):
            assert float(part.c_proj.weight.detach().std()) == pytest.approx(0.02 / 4**0.5, rel=0.1)


def test_weights_of_another_model_and_unknown_settings_are_refused(tokenizer, tmp_path):
    model = small(tokenizer)
    with pytest.raises(ValueError, match=r"no \*.safetensors here"):
        load_weights(model, tmp_path)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights["transformer.ln_f.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 names or shapes differ, the first is transformer.ln_f.bias"):
        load_weights(model, tmp_path)
    with pytest.raises(ValueError, match="transformers knows no 'gpt9'"):
        model_config(ModelSettings(architecture="gpt9"), 8, 9, tokenizer)
    with pytest.raises(ValueError, match="model.overrides.n_inne: not a configuration key of gpt2"):
        model_config(ModelSettings(overrides={"n_inne": 4}), 8, 9, tokenizer)
