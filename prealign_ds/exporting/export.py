"""Writing a model for others: safetensors, configuration, tokenizer, card, as transformers and what reads it expect."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prealign_ds.exporting.card import model_card
from prealign_ds.exporting.source import Source
from prealign_ds.exporting.tokenizer import write_tokenizer
from prealign_ds.files import atomic_folder, write_json
from prealign_ds.model import check_weights, model_config, num_parameters, tied_weight_names, vocabulary_weight_names

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OF_OTHER_TASKS = ("id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states")
_NEOX_INPUT = "gpt_neox.embed_in.weight"
_OTHER_FILES = 64 << 20  # bytes that tokenizer, configuration and card may take


def export_model(
    source: Source, output: Path, dtype: str = "float32", keep_padding: bool = False, license_name: str | None = None
) -> None:
    """Write a transformers model folder, whole or not at all.

    Args:
        source: The model.
        output: The folder to write; it must not exist.
        dtype: One of ``DTYPES``. In float32 the logits are those of the training model.
        keep_padding: Whether the embeddings keep the rows that no id uses.
        license_name: For the model card.

    Raises:
        ValueError: If ``output`` exists, there is no room, or weights and configuration do not belong together.
    """
    if output.exists() or output.is_symlink():
        raise ValueError(f"--output {output}: exists; choose another name, or remove it")
    tokenizer, settings = source.tokenizer(), source.settings
    config = model_config(settings.model, settings.data.sequence_length, source.vocabulary, tokenizer)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    weights = source.weights()
    check_weights(model, weights, source.folder)
    _check_room(output, weights, DTYPES[dtype])
    rows = config.vocab_size if keep_padding else source.vocabulary
    exported = _to_export(model, weights, rows, DTYPES[dtype])
    with atomic_folder(output) as work:
        save_file(exported, work / "model.safetensors", {"format": "pt"})
        write_json(work / "config.json", _config(model, rows, dtype))
        os.chmod(work / "model.safetensors", (work / "config.json").stat().st_mode)  # safetensors lets nobody else read
        write_json(work / "generation_config.json", _generation_config(model, tokenizer, source.vocabulary, rows))
        write_tokenizer(work, tokenizer, settings.has_clone, settings.data.sequence_length)
        write_json(work / "training.json", {"tokens": source.tokens, "vocabulary": source.vocabulary})
        card = model_card(source, num_parameters(model), len(tokenizer), rows, dtype, license_name)
        (work / "README.md").write_text(card, encoding="utf-8")


def _check_room(output: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    need = sum(tensor.numel() for tensor in weights.values()) * dtype.itemsize + _OTHER_FILES
    free = shutil.disk_usage(output.absolute().parent).free
    if free < need:
        raise ValueError(
            f"--output {output}: takes about {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; make room"
        )


def _to_export(model: PreTrainedModel, weights: dict[str, Tensor], rows: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights as they are stored: tied ones once, embeddings cut to ``rows``.

    GPT-NeoX's output embedding has the name that all but transformers 5 know, and is there if it is tied too: llama.cpp
    asks for it.
    """
    embeddings, tied = vocabulary_weight_names(model), tied_weight_names(model)
    cut = {name: tensor[:rows] if name in embeddings else tensor for name, tensor in weights.items()}
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in cut.items() if name not in tied}
    if model.config.model_type == "gpt_neox":
        own = next((name for name in embeddings & stored.keys() if name != _NEOX_INPUT), None)
        stored["embed_out.weight"] = stored.pop(own) if own else stored[_NEOX_INPUT].clone()
    return stored


def _config(model: PreTrainedModel, rows: int, dtype: str) -> dict[str, Any]:
    """``config.json``, with old names beside new ones where transformers 4, llama.cpp and vLLM look for those."""
    config = model.config
    config.vocab_size, config.use_cache, config.architectures = rows, True, [type(model).__name__]
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False)) | {"dtype": dtype, "torch_dtype": dtype}
    if config.model_type == "gpt2":
        values["n_ctx"] = values["n_positions"]
    rope = values.get("rope_parameters") or {}
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    if config.model_type == "gpt_neox":
        values |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    return {key: value for key, value in values.items() if not key.startswith(("_", *_OF_OTHER_TASKS))}


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, vocabulary: int, rows: int
) -> dict[str, Any]:
    """``generation_config.json``: the ids that begin and end, never an id that no text has, never beyond all positions.

    Temperature 1 is the model's own distribution.
    """
    config = model.config
    values = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.eos_token_id,
        "do_sample": True,
    }
    return values | ({"suppress_tokens": list(range(vocabulary, rows))} if rows > vocabulary else {})
