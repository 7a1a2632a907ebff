"""Megatron's own dataset and model with our switches and our loss: what differs, and that nothing else does."""

import os
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launching import free_port
from plugging import Data, build_plug_data, digest, one_thread
from test_switcher import make_table, slow_switch
from torch.utils.data import DataLoader
from without_gpu.sitecustomize import attend

from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.switcher import IGNORED, CodeSwitcher
from prealign_ds.corpus.tokens import IndexedDatasetBuilder
from prealign_ds.plugins.megatron import AlignableGPT, CodeSwitchedGPTDataset, CodeSwitchedGPTDatasetConfig
from prealign_ds.randomness import key_of
from prealign_ds.stream.stream import CodeSwitchedStream, StreamCorpus

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

LENGTH = 24
WORDS = {"piano": ["Klavier"], "house": ["Haus", "Gebäude"], "the": ["a"], "old": ["river street"], "plays": ["we"]}


class Names:
    """What Megatron asks of a tokenizer."""

    vocab_size, eod, pad = 400, 0, -1
    unique_identifiers = {"class": "test"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    one_thread()
    return Data(build_plug_data(tmp_path_factory.mktemp("data")))


def options(**changes):
    plain = dict.fromkeys(("reset_position_ids", "reset_attention_mask", "eod_mask_loss"), False)
    common = {"random_seed": 5, "sequence_length": LENGTH, "split": "1,0,0", "tokenizer": Names()}
    return common | plain | {"create_attention_mask": False} | changes


def configs(prefix, switcher, own=None, **changes):
    """Megatron's configuration and ours for one corpus."""
    changes = {"blend": ([str(prefix)], None), "path_to_cache": f"{prefix}.cache"} | changes
    plain = GPTDatasetConfig(**options(**changes))
    own = {"switcher": switcher, "switched": {str(prefix): "en"}, "switch_ratio": 0.3} | (own or {})
    return plain, CodeSwitchedGPTDatasetConfig.extend(plain, **own)


def dataset(cls, prefix, config, samples=None, split=Split.train):
    tokens = IndexedDataset(str(prefix))
    return cls(tokens, str(prefix), np.arange(len(tokens), dtype=np.int32), samples, split, config)


def pair(data, samples=150, own=None, **changes):
    """GPTDataset and ours on the same tokens."""
    prefix = data.folder / "text"
    plain, ours = configs(prefix, data.switcher, own, **changes)
    return dataset(GPTDataset, prefix, plain, samples), dataset(CodeSwitchedGPTDataset, prefix, ours, samples)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name]), name


def trained(sample):
    return sample["labels"][sample["loss_mask"] == 1].tolist()


def is_subsequence(part, whole):
    whole = iter(whole)
    return all(token in whole for token in part)


MASKS = [
    {},
    {"create_attention_mask": True},
    {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True, "create_attention_mask": True},
    {"add_extra_token_to_sequence": False},
]


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("own", [{"switch_ratio": 0.0}, {"switched": {}}, {"switch_ratio": 1e-12}])
def test_without_switches_it_is_gptdataset(data, own, masks):
    theirs, ours = pair(data, own=own, **masks)
    for index in [None, *range(len(theirs))]:
        assert_equal(ours[index], theirs[index])


@pytest.mark.parametrize("masks", MASKS)
def test_labels_are_gptdatasets_and_only_inputs_are_switched(data, masks):
    theirs, ours = pair(data, **masks)
    switched = 0
    for index in range(len(theirs)):
        plain, sample = theirs[index], ours[index]
        assert sample.keys() == plain.keys()
        assert all(sample[name].shape == plain[name].shape for name in plain)
        assert all(sample[name].dtype == plain[name].dtype for name in plain)
        assert is_subsequence(trained(sample), trained(plain))
        assert (sample["labels"][sample["loss_mask"] == 0] == 0).all() or masks.get("eod_mask_loss")
        switched += sum(ours.switched(index).num_switched.values())
    assert switched > 100
    assert torch.equal(ours[None]["loss_mask"], torch.zeros(LENGTH))


def test_masks_follow_the_documents_in_the_shown_tokens(data):
    _, ours = pair(data, **MASKS[2])
    for index in range(len(ours)):
        sample = ours[index]
        ends = (sample["tokens"] == Names.eod).nonzero().flatten().tolist()
        positions = np.concatenate([np.arange(part) for part in np.diff([0, *(end + 1 for end in ends), LENGTH])])
        assert sample["position_ids"].tolist() == positions.tolist()
        assert not sample["loss_mask"][ends].any()


def test_order_and_index_files_are_gptdatasets(data, tmp_path):
    theirs, ours = pair(data, path_to_cache=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 4, "a description and three indices, of both"
    for name in ("document_index", "sample_index", "shuffle_index"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.skipif(not hasattr(GPTDatasetConfig, "defer_npy_index_mmap"), reason="needs megatron-core 0.16")
def test_index_files_may_be_opened_late(data, tmp_path):
    ours = pair(data, path_to_cache=str(tmp_path))[1]
    deferred = pair(data, path_to_cache=str(tmp_path), defer_npy_index_mmap=True)[1]
    assert_equal(deferred[7], ours[7])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=9),
    length=st.integers(2, 40),
    samples=st.one_of(st.none(), st.integers(1, 40)),
    ratio=st.sampled_from([0.05, 0.5, 1.0]),
    seed=st.integers(0, 3),
    ends=st.booleans(),
    extra=st.booleans(),
)
def test_samples_agree_with_the_equations(data, tmp_path, lengths, length, samples, ratio, seed, ends, extra):
    """Against the slow reference on the whole text in Megatron's order, with documents that end in EOD or in a word."""
    if sum(lengths) <= length + 1:
        return
    text, place = data.tokens.read(40 * seed, sum(lengths)).astype(np.int64), 0
    text[text == Names.eod] = 5
    prefix = tmp_path / f"{lengths}{seed}{ends}{extra}".replace(" ", "")  # Megatron's cache forgets `extra`
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for number in lengths:
        builder.add_item(torch.from_numpy(np.append(text[place : place + number], [Names.eod] * ends)))
        builder.end_document()
        place += number
    builder.finalize(f"{prefix}.idx")
    table = make_table(WORDS)
    own = {"switch_ratio": ratio, "switch_seed": seed}
    changes = {"sequence_length": length, "add_extra_token_to_sequence": extra, "path_to_cache": str(tmp_path)}
    _, config = configs(prefix, CodeSwitcher(table, data.tokenizer), own, **changes)
    ours = dataset(CodeSwitchedGPTDataset, prefix, config, samples)
    whole, drawn = megatron_text(ours, seed)
    for index in range(0, len(ours), 1 + len(ours) // 5):
        start, owned = int(ours.shuffle_index[index]) * length, length - (not extra)
        inputs, targets = slow_switch(data.tokenizer, table, "input_only", whole, start, owned, ratio, drawn)
        sample = {name: values[:owned].tolist() for name, values in ours[index].items()}
        assert sample["tokens"] == inputs
        assert sample["labels"] == [0 if token == IGNORED else token for token in targets]
        assert sample["loss_mask"] == [float(token != IGNORED) for token in targets]


def megatron_text(ours, seed):
    """All tokens in Megatron's order, and what the reference draws their words with."""
    seen, tokens, keys = {}, [], []
    starts = np.cumsum([0, *ours.dataset.sequence_lengths])
    for document in map(int, ours.document_index):
        visit = seen[document] = seen.get(document, -1) + 1
        key = key_of("switch", seed, "en", visit)
        part = ours.dataset.get(document).tolist()
        tokens += part
        keys += [int(starts[document] + place) ^ key for place in range(len(part))]
    return np.array(tokens), Draws(keys)


class Draws:
    """A key of the reference: the word at a place of Megatron's order is drawn by its place in the corpus."""

    def __init__(self, keys):
        self._keys = keys

    def __rxor__(self, place):
        return self._keys[place]


def clone_switches(data, samples):
    """Whether each (visit, token offset) is switched that stands well inside a sample; a clone has as many tokens."""
    prefix, switcher = data.folder / "text", CodeSwitcher(AlignmentTable.clone(data.counts()), data.tokenizer)
    _, config = configs(prefix, switcher, {"switch_seed": 9})
    ours = dataset(CodeSwitchedGPTDataset, prefix, config, samples)
    starts, seen, places = np.cumsum([0, *ours.dataset.sequence_lengths]), {}, []
    for document in map(int, ours.document_index):
        visit = seen[document] = seen.get(document, -1) + 1
        places += [(visit, offset) for offset in range(starts[document], starts[document + 1])]
    found = {}
    for index in range(len(ours)):
        first = int(ours.shuffle_index[index]) * LENGTH
        found |= dict(zip(places[first : first + LENGTH][INNER], is_clone(data, ours[index]["tokens"]), strict=True))
    return found


INNER = slice(6, -6)
"""No word has more tokens than that, so that whole words are compared."""


def is_clone(data, tokens):
    return [int(token) >= len(data.tokenizer) for token in tokens[INNER]]


def test_visits_are_switched_alike_whatever_the_order_and_as_in_our_stream(data):
    one, three = clone_switches(data, None), clone_switches(data, 3 * data.tokens.num_tokens // LENGTH - 50)
    assert {visit for visit, _ in three} == {0, 1, 2}
    switcher = CodeSwitcher(AlignmentTable.clone(data.counts()), data.tokenizer)
    stream = CodeSwitchedStream([StreamCorpus("en", "en", data.tokens, 1.0, True, "")], LENGTH, 9, switcher, 0.3)
    ours = {}
    for index in range(3 * (data.tokens.num_tokens // LENGTH - 1)):
        _, epoch, start = stream.locate(index)
        places = [(epoch, start + place) for place in range(LENGTH)][INNER]
        ours |= dict(zip(places, is_clone(data, stream[index].input_ids), strict=True))
    for other in (one, ours):
        both = three.keys() & other.keys()
        assert len(both) > 1000 and sum(three[place] for place in both) > 200
        assert all(three[place] == other[place] for place in both)
    again = [
        three[1, offset] == value for (visit, offset), value in three.items() if not visit and (1, offset) in three
    ]
    assert np.mean(again) < 0.95, "another visit has switches of its own"


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resuming_change_nothing(data, workers):
    _, ours = pair(data, **MASKS[1])
    rows = list(DataLoader(ours, batch_size=8, num_workers=workers))
    assert digest(rows) == digest(list(DataLoader(pair(data, **MASKS[1])[1], batch_size=8)))
    resumed = torch.utils.data.Subset(ours, range(32, len(ours)))
    assert digest(DataLoader(resumed, batch_size=8)) == digest(rows[4:])


def test_a_blend_switches_the_source_language_in_the_training_split(data, tmp_path, megatron):
    texts = [data.folder / "text", tmp_path / "other"]
    for kind in ("bin", "idx"):
        os.symlink(f"{texts[0]}.{kind}", f"{texts[1]}.{kind}")
    blend = {"blend": (list(map(str, texts)), [0.7, 0.3]), "split": "8,2,0", "path_to_cache": str(tmp_path / "cache")}
    plain, own = configs(texts[0], data.switcher, **blend)
    theirs, ours = (
        BlendedMegatronDatasetBuilder(cls, [100, 20, 0], lambda: True, config).build()
        for cls, config in ((GPTDataset, plain), (CodeSwitchedGPTDataset, own))
    )
    differ = [0, 0]
    for index in range(100):
        corpus = int(ours[0].dataset_index[index])
        differ[corpus] += not torch.equal(ours[0][index]["tokens"], theirs[0][index]["tokens"])
    assert differ[0] > 50 and differ[1] == 0
    for index in range(20):
        assert_equal(ours[1][index], theirs[1][index])


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"switcher": None}, "switcher: None"),
        ({"switch_ratio": 5}, "switch_ratio: 5 is no probability"),
        ({"switched": {"data/txet": "en"}}, "switched: .'data/txet'. are not in the blend"),
    ],
)
def test_what_the_configuration_lacks_is_named(data, own, says):
    with pytest.raises(ValueError, match=says):
        configs(data.folder / "text", data.switcher, own)
    with pytest.raises(ValueError, match="not switched; name it"):
        pair(data, own={"switched": {}})[1].switched(0)


@pytest.fixture(scope="module")
def megatron():
    """Megatron's groups of one rank."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


class CausalAttention(torch.nn.Module):
    """The part of Megatron's attention that needs CUDA; a layer specification may name any."""

    def __init__(self, **_):
        super().__init__()

    forward = attend


def gpt_model(data, tied=False, attention=CausalAttention, **changes):
    specification = get_gpt_layer_local_spec(normalization="LayerNorm")
    if attention:
        specification.submodules.self_attention.submodules.core_attention = attention
    shape = {"num_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "use_cpu_initialization": True}
    config = TransformerConfig(**shape, hidden_dropout=0.0, attention_dropout=0.0, **changes)
    torch.manual_seed(0)
    return GPTModel(config, specification, len(data.tokenizer), 64, share_embeddings_and_output_weights=tied)


def alone(model, ids):
    """h_w^l of one word without padding, layer by layer, written from Eq. 1."""
    tokens = torch.tensor([ids])
    states = model.embedding(input_ids=tokens, position_ids=torch.arange(len(ids))[None])
    layers = [model.embedding.word_embeddings.weight[ids].mean(0)]
    for number, block in enumerate(model.decoder.layers, 1):
        states = block(hidden_states=states, attention_mask=None)[0]
        last = number == len(model.decoder.layers)
        layers.append((model.decoder.final_layernorm(states) if last else states)[:, 0].mean(0))
    tied = model.share_embeddings_and_output_weights
    return [*layers, (model.embedding.word_embeddings if tied else model.output_layer).weight[ids].mean(0)]


@pytest.mark.parametrize("tied", [False, True])
def test_representations_of_a_gptmodel_are_those_of_words_alone(data, megatron, tied):
    from prealign_ds.alignment.representations import word_representations

    model, batch = gpt_model(data, tied), data.stage().batch(0)
    found = word_representations(AlignableGPT(model), batch)
    assert len(found) == 5
    for place, (ids, mask) in enumerate(zip(batch.input_ids_rT, batch.mask_rT, strict=True)):
        for layer, expected in zip(found, alone(model, ids[mask == 1].tolist()), strict=True):
            torch.testing.assert_close(layer[place], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_reaches_all_weights_also_where_blocks_are_recomputed(data, megatron):
    stage, gradients = data.stage(), []
    for changes in ({}, {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}):
        model = gpt_model(data, **changes)
        loss, log = stage.loss(AlignableGPT(model), stage.batch(0))
        loss.backward()
        assert model.post_process and model.config.recompute_granularity == changes.get("recompute_granularity")
        assert not any(part._forward_hooks for part in model.modules())
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        assert log["aligned_cosine"].shape == (5,)
    assert [name for name, gradient in gradients[0].items() if gradient is None] == []
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_wrapped_models_are_found_and_split_ones_refused(data, megatron):
    model, stage = gpt_model(data), data.stage()
    wrapped = torch.nn.Module()
    wrapped.module = torch.nn.Module()
    wrapped.module.module = model
    losses = [stage.loss(AlignableGPT(each), stage.batch(0))[0] for each in (model, wrapped)]
    assert losses[0] == losses[1]
    model.config.tensor_model_parallel_size = 2
    with pytest.raises(ValueError, match="'tensor_model_parallel_size': 2"):
        AlignableGPT(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gptmodel_with_its_own_attention_aligns_on_a_gpu(data, megatron):
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(0)
    model, stage = gpt_model(data, attention=None, params_dtype=torch.bfloat16, bf16=True).cuda(), data.stage()
    adam, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for step in range(30):
        loss, _ = stage.loss(AlignableGPT(model), stage.batch(step).to("cuda"))
        adam.zero_grad(), loss.backward(), adam.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
