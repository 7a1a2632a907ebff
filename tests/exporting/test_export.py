"""Exported models: what training computes and nothing else, readable by transformers, and a start for another run."""

import json
import shlex
import shutil
import sys

import pytest
import torch
import yaml
from building import build_data, write_recipe
from conftest import REPOSITORY, STYLES, make_text
from launching import launch_each
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline
from worker_trainings import ALONE, TWO_RANKS

from prealign_ds.corpus.clone import clone_ids
from prealign_ds.exporting.export import export_model
from prealign_ds.exporting.source import Source, find_model
from prealign_ds.exporting.tokenizer import write_tokenizer
from prealign_ds.files import read_json, write_json
from prealign_ds.model import load_exported
from prealign_ds.recipe import load_settings
from prealign_ds.training.environment import World
from prealign_ds.training.run import Run
from tools import export_hf

HERE = World(0, 1, torch.device("cpu"))
V = 400


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Real trainings under every ZeRO stage, on one rank and on two."""
    folder = tmp_path_factory.mktemp("trained")
    build_data(folder)
    changes = {"pretrain": {"batch_tokens": 128, "micro_batch_size": 2, "optimizer": {"learning_rate": 0.003}}}
    changes["guards"] = {"trial_batch": False}
    write_recipe(folder, lm_tokens=2 * 128, evaluation={"max_tokens": 256}, checkpoint={}, **changes)
    launch_each(*((ranks, "tests/exporting/worker_trainings.py", folder) for ranks in (1, 2)))
    return folder


def opened(run, checkpoint=None, model=None):
    return Source.open(run, find_model(run, checkpoint, model))


def trainers_model(run, folder="model"):
    """The model as training has it, its vocabulary padded."""
    return Run(load_settings(run / "config.yaml"), HERE).saved_model(run / folder)


@torch.no_grad()
def logits_of(model, ids=2 * V):
    rows = torch.arange(2 * 32).reshape(2, 32) * 12 % ids
    return model.eval()(input_ids=rows).logits


@pytest.mark.parametrize("name", [*ALONE, *TWO_RANKS])
def test_checkpoints_of_all_stages_and_ranks_give_the_logits_of_training(trained, tmp_path, name):
    run = trained / name
    export_model(opened(run, "newest"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    config, weights = read_json(tmp_path / "out/config.json"), load_file(tmp_path / "out/model.safetensors")
    expected = logits_of(trainers_model(run))
    assert expected.shape[-1] == 896 and config["vocab_size"] == 2 * V == len(model.get_input_embeddings().weight)
    assert (logits_of(model) - expected[..., : 2 * V]).abs().max() < 1e-5
    tied = load_settings(run / "config.yaml").model.tied_embeddings
    assert config["tie_word_embeddings"] == tied
    if config["model_type"] != "gpt_neox":
        assert ("lm_head.weight" in weights) == (not tied)
    assert config["architectures"] == [type(model).__name__] and config["dtype"] == config["torch_dtype"] == "float32"
    assert config.get("rope_theta") == (None if config["model_type"] == "gpt2" else 10_000)
    assert (tmp_path / "out/model.safetensors").stat().st_mode == (tmp_path / "out/config.json").stat().st_mode


def test_stage_1_and_the_final_model_are_exported_by_the_tool_and_load_everywhere(
    trained, tmp_path, monkeypatch, capsys
):
    run = trained / "zero3_two"
    for words in (["--license", "apache-2.0"], ["--model", run / "align"], ["--checkpoint", "align/step-00000001"]):
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        monkeypatch.setattr(sys, "argv", ["export_hf.py", str(run), "--output", str(output), *map(str, words)])
        export_hf.main()
        assert "tokens, float32" in capsys.readouterr().out
    final, align, checkpoint = (load_file(tmp_path / str(number) / "model.safetensors") for number in range(3))
    assert all(torch.allclose(align[key], checkpoint[key], atol=1e-6) for key in align)
    assert any(not torch.allclose(align[key], final[key], atol=1e-4) for key in align)
    generate = pipeline("text-generation", model=str(tmp_path / "0"))
    text = generate("the old piano", max_new_tokens=8)[0]["generated_text"]
    assert text.startswith("the old piano") and generate.model.generation_config.eos_token_id == 0
    card = (tmp_path / "0/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["language"] == ["en"] and front["library_name"] == "transformers"
    for part in ("It has read 256 tokens", "input-only code-switching", "102 words of en", "| clone |", "`⟨piano⟩`"):
        assert part in card, part
    assert str(trained) not in card and "license" not in (tmp_path / "1/README.md").read_text()


def test_padding_is_kept_on_demand_and_never_drawn_and_bf16_is_half_as_large(trained, tmp_path):
    run = trained / "zero0"
    export_model(opened(run), tmp_path / "padded", keep_padding=True)
    export_model(opened(run), tmp_path / "half", dtype="bfloat16")
    padded, half = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("padded", "half"))
    assert padded.config.vocab_size == 896 and torch.equal(logits_of(padded), logits_of(trainers_model(run)))
    assert padded.generation_config.suppress_tokens == list(range(2 * V, 896))
    drawn = padded.generate(torch.zeros(64, 1, dtype=torch.int64), max_new_tokens=20, temperature=50.0)
    assert drawn.max() < 2 * V
    assert half.dtype == torch.bfloat16 and half.config.vocab_size == 2 * V
    assert (logits_of(half) - logits_of(padded)[..., : 2 * V]).abs().max() < 0.05


@pytest.mark.parametrize("style", STYLES)
def test_the_tokenizer_encodes_as_in_training_and_shows_clone_words(style, tmp_path):
    AutoConfig.for_model("gpt2" if style == "gpt2" else "llama").save_pretrained(tmp_path)
    trainings = STYLES[style]()
    write_tokenizer(tmp_path, trainings, True, 10_000)
    exported, size = AutoTokenizer.from_pretrained(tmp_path), len(trainings)
    assert len(exported) == 2 * size and exported.get_vocab().items() >= trainings.get_vocab().items()
    texts = [make_text(300, 3), "a ⟨piano⟩, naïve café\n\n 東京", " two  spaces"]
    for text in [*texts, *([] if style == "sentencepiece" else ["⟨⟩ ⟨"])]:
        ids = trainings.encode(text)
        assert exported.encode(text) == ids and exported.decode(ids) == trainings.decode(ids)
    clones = clone_ids(trainings)
    ids = trainings.encode("He plays the café piano well", add_special_tokens=False)
    both = [*ids, *clones[ids].tolist(), trainings.eos_token_id]
    end = " " if style == "sentencepiece" else ""
    plain = trainings.decode(ids)
    assert exported.decode(both) == f"{plain}{end}⟨He⟩ ⟨plays⟩ ⟨the⟩ ⟨café⟩ ⟨piano⟩ ⟨well⟩{trainings.eos_token}"
    assert exported.decode(both, skip_special_tokens=True).endswith("⟨well⟩")
    names = [exported.decode([number]) for number in range(size, 2 * size)]
    assert all("⟨" in name or not trainings.decode([place]).strip() for place, name in enumerate(names))
    other = AutoTokenizer.from_pretrained(tmp_path / "clone")
    assert len(other) == 2 * size and sorted(other.get_vocab().values()) == list(range(2 * size))
    for text in [*texts, f"the piano{trainings.eos_token}the river"]:
        ids = clones[trainings.encode(text)].tolist()
        assert other.encode(text) == ids and other.decode(ids) == trainings.decode(trainings.encode(text))
    assert "⟨piano⟩" in other.decode(trainings.encode("the piano")) and other.eos_token_id == trainings.eos_token_id


# What their readers ask for: config keys of vLLM and of llama.cpp's convert_hf_to_gguf.py, which reads them through
# transformers 4.57, and the tensors that llama.cpp cannot do without.
EXPECTED = {
    "GPT2LMHeadModel": (
        {"n_ctx": 32, "n_positions": 32, "n_embd": 32, "n_head": 2, "n_layer": 2, "layer_norm_epsilon": 1e-5,
         "activation_function": "gelu_new", "add_cross_attention": False, "scale_attn_by_inverse_layer_idx": False,
         "reorder_and_upcast_attn": False},
        {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"},
    ),
    "LlamaForCausalLM": (
        {"max_position_embeddings": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 86, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
         "hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        {"model.embed_tokens.weight", "model.norm.weight"},
    ),
    "GPTNeoXForCausalLM": (
        {"max_position_embeddings": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 128, "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 1e4,
         "use_parallel_residual": True, "hidden_act": "gelu", "attention_bias": True},
        {"gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias",
         "embed_out.weight"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["zero0", "zero3", "zero2", "zero1_two", "neox", "neox_untied"])
def test_readers_of_other_projects_find_what_they_ask_for(trained, tmp_path, name):
    run = trained / name
    export_model(opened(run), tmp_path / "out")
    config, weights = read_json(tmp_path / "out/config.json"), load_file(tmp_path / "out/model.safetensors")
    (architecture,) = config["architectures"]
    keys, names = EXPECTED[architecture]
    assert {key: config.get(key) for key in keys} == keys
    tied = config["tie_word_embeddings"]
    head = {"embed_out.weight" if "NeoX" in architecture else "lm_head.weight"}
    names = names if tied else names | head
    assert {key for key in weights if ".layers." not in key and ".h." not in key} == names
    assert config["eos_token_id"] == config["bos_token_id"] == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    described, settings = (read_json(tmp_path / f"out/{file}.json") for file in ("tokenizer", "tokenizer_config"))
    assert sorted(tokenizer.get_vocab().values()) == list(range(config["vocab_size"])), "no id lacks a name"
    assert described["model"]["type"] == "BPE" and described["model"]["merges"] and described["pre_tokenizer"]
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["model_max_length"] == 32
    expected = logits_of(trainers_model(run), config["vocab_size"])[..., : config["vocab_size"]]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loaded[1][what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (logits_of(loaded[0], config["vocab_size"]) - expected).abs().max() < 1e-5
    again = Run(load_settings(run / "config.yaml"), HERE).saved_model(tmp_path / "out")
    assert (logits_of(again, config["vocab_size"])[..., : config["vocab_size"]] - expected).abs().max() < 1e-5
    words = [f"model.architecture={config['model_type']}", f"model.tied_embeddings={str(tied).lower()}"]
    new = started(trained, tmp_path / "out", *words)
    assert (logits_of(new, config["vocab_size"])[..., : config["vocab_size"]] - expected).abs().max() < 1e-5


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(trained, tmp_path):
    run = trained / "zero3_two"
    with pytest.raises(ValueError, match="no complete checkpoint of this name.*there are: align/step-0"):
        find_model(run, "step-7", None)
    with pytest.raises(ValueError, match="more than one complete"):
        find_model(run, sorted((run / "checkpoints/align").glob("step-*"))[-1].name, None)
    with pytest.raises(ValueError, match="no model here; name the folder of a run that trained"):
        find_model(tmp_path, None, None)
    checkpoint = find_model(run, "newest", None)
    with pytest.raises(ValueError, match="outside .*a pickle, which can run code"):
        Source.open(trained / "zero0", checkpoint)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="--output .*out: exists"):
        export_model(opened(run), tmp_path / "out")
    copy = shutil.copytree(run, tmp_path / "run")
    with open(next((copy / "checkpoints/pretrain").rglob("*optim_states.pt")), "ab") as handle:
        handle.write(b"x")
    with pytest.raises(ValueError, match="optim_states.pt: .* were written"):
        export_model(opened(copy, "newest"), tmp_path / "damaged")
    shutil.rmtree(copy / "model")
    with pytest.raises(ValueError, match="finish the run, or export --model .*align or --checkpoint align/step"):
        find_model(copy, None, None)
    export_model(opened(run), tmp_path / "fine")
    with pytest.raises(ValueError, match="no tokenizer_sha256; name a model that training wrote"):
        Source.open(run, tmp_path / "fine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fine", "out", "run"], "nothing half-written"


def started(trained, folder, *overrides):
    words = [f"run_dir={trained}/new", f"model.start_from={folder}", *overrides]
    return Run(load_settings(trained / "recipe.yaml", words), HERE).new_model()


@pytest.mark.parametrize("name", ["zero0", "zero3", "zero1_two"])
def test_an_exported_model_starts_another_run(trained, tmp_path, name):
    run = trained / name
    export_model(opened(run), tmp_path / "out")
    model = load_settings(run / "config.yaml").model
    words = [f"model.tied_embeddings={str(model.tied_embeddings).lower()}", f"model.architecture={model.architecture}"]
    again = started(trained, tmp_path / "out", *words)
    assert again.config.vocab_size == 896 and again.dtype == torch.float32
    assert torch.equal(logits_of(again)[..., : 2 * V], logits_of(trainers_model(run))[..., : 2 * V])
    assert torch.equal(
        logits_of(Run(load_settings(run / "config.yaml"), HERE).saved_model(tmp_path / "out")), logits_of(again)
    )


def test_a_model_of_elsewhere_starts_a_run_once_the_recipe_describes_it(trained, tmp_path):
    config = AutoConfig.for_model(
        "llama", num_hidden_layers=3, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=960,
        intermediate_size=100, tie_word_embeddings=True, head_dim=12, rms_norm_eps=1e-5, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    config.rope_parameters = {"rope_type": "default", "rope_theta": 5e5}
    other = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    other.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    with pytest.raises(ValueError, match="config.json: model_type is 'llama'.*set model.architecture=llama"):
        started(trained, tmp_path)
    with pytest.raises(ValueError, match="num_key_value_heads: 2 there, 2 in|another model than the recipe's") as error:
        started(trained, tmp_path, "model.architecture=llama")
    (words,) = [line for line in str(error.value).splitlines() if line.startswith("to start from it, append: ")]
    assert "model.num_layers=3" in words and "model.overrides.intermediate_size=100" in words
    overrides = ["model.architecture=llama", *shlex.split(words.removeprefix("to start from it, append: "))]
    model = started(trained, tmp_path, *overrides)
    expected = logits_of(other.float())[..., : 2 * V]
    assert model.config.vocab_size == 896 and (logits_of(model)[..., : 2 * V] - expected).abs().max() < 1e-5
    index = read_json(tmp_path / "model.safetensors.index.json")
    shard = tmp_path / next(iter(index["weight_map"].values()))
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: missing, model.safetensors.index.json names it"):
        started(trained, tmp_path, *overrides)


def test_gpt2_as_the_hub_has_it_starts_a_run(trained, tmp_path):
    """Without the prefix of the causal model, with the causal mask among the weights, tied weights once."""
    export_model(opened(trained / "zero0"), tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    weights = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 32, 32)}, file, {"format": "pt"})
    expected = logits_of(trainers_model(trained / "zero0"))[..., : 2 * V]
    assert torch.equal(logits_of(started(trained, tmp_path / "out"))[..., : 2 * V], expected)


def test_starts_that_do_not_fit_say_what_to_do(trained, tmp_path):
    good = tmp_path / "good"
    export_model(opened(trained / "zero0"), good)

    def refused(message, change, *overrides):
        folder = shutil.copytree(good, tmp_path / "bad")
        change(folder)
        with pytest.raises(ValueError, match=message):
            started(trained, folder, *overrides)
        shutil.rmtree(folder)

    def configured(**changes):
        return lambda folder: write_json(folder / "config.json", read_json(folder / "config.json") | changes)

    def other_tokenizer(folder):
        description = read_json(folder / "tokenizer.json")
        vocab = description["model"]["vocab"]
        vocab["Ġpiano"], vocab["Ġriver"] = vocab["Ġriver"], vocab["Ġpiano"]
        write_json(folder / "tokenizer.json", description)

    def torn_tokenizer(folder):
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:-99])

    def pickled(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def without_a_layer(folder):
        weights = load_file(folder / "model.safetensors")
        del weights["transformer.h.1.mlp.c_fc.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def cut_short(folder):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-100])

    refused("no config.json here", lambda folder: (folder / "config.json").unlink())
    refused("(?s)n_positions: 64 there, 32 in.*append: model.overrides.n_positions=64", configured(n_positions=64))
    refused("append: data.sequence_length=16", configured(n_positions=16))
    refused("vocab_size is 400, this run uses 800 ids", configured(vocab_size=400))
    refused("quantized weights cannot be trained", configured(quantization_config={"quant_method": "gptq"}))
    refused("token 'Ġ(piano|river)' has id .* there and .* in data.tokenizer", other_tokenizer)
    refused("tokenizer.json: not a readable tokenizer", torn_tokenizer)
    refused("only pytorch_model.bin, a pickle", pickled)
    refused("1 missing keys, the first is transformer.h.1.mlp.c_fc.weight", without_a_layer)
    refused("weights cannot be read .*copy it again", cut_short)
    refused("append: model.num_layers=2", lambda folder: None, "model.num_layers=3")
    assert json.loads((good / "training.json").read_text())["tokens"] == 256
    assert load_exported(good).config.vocab_size == 2 * V
