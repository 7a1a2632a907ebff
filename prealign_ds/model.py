"""The causal language model: built by transformers from a configuration, with its loss and its vocabulary.

The vocabulary of the model is that of the tokenizer (twice that with En-Clone), padded to a multiple for the sake of
matrix kernels. Ids of the padding never occur and get no probability.
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from prealign_ds.config import ModelSettings
from prealign_ds.files import read_json

_LOGGER = logging.getLogger(__name__)

_GPT2_NAMES = {
    "num_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_heads": "n_head",
    "sequence_length": "n_positions",
}
_COMMON_NAMES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "sequence_length": "max_position_embeddings",
}
_OTHER_NAMES = {"embed_out.weight": "lm_head.weight", "lm_head.weight": "embed_out.weight"}  # GPT-NeoX, old and new
_WITHOUT_EFFECT = (
    "vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache",
    "initializer_range", "pretraining_tp", "classifier_dropout",
)  # fmt: skip
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")


def vocabulary_size(tokenizer: PreTrainedTokenizerFast, clone: bool) -> int:
    """Ids in use: V, or 2V with En-Clone."""
    return len(tokenizer) * (2 if clone else 1)


def model_config(
    settings: ModelSettings, sequence_length: int, vocabulary: int, tokenizer: PreTrainedTokenizerFast
) -> Any:
    """The transformers configuration for these settings.

    Args:
        settings: The ``model`` section.
        sequence_length: Positions that the model must have.
        vocabulary: Ids in use; the model's vocabulary is this, padded to ``settings.vocabulary_multiple``.
        tokenizer: Names the end-of-text token.

    Raises:
        ValueError: If the architecture is unknown, or an override is not one of its configuration keys.
    """
    names = _GPT2_NAMES if settings.architecture == "gpt2" else _COMMON_NAMES
    multiple = settings.vocabulary_multiple
    values: dict[str, Any] = {
        names["num_layers"]: settings.num_layers,
        names["hidden_size"]: settings.hidden_size,
        names["num_heads"]: settings.num_heads,
        names["sequence_length"]: sequence_length,
        "vocab_size": -(-vocabulary // multiple) * multiple,
        "tie_word_embeddings": settings.tied_embeddings,
        "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "use_cache": False,
    }
    try:
        known = AutoConfig.for_model(settings.architecture)
    except ValueError as error:
        raise ValueError(
            f"model.architecture: transformers knows no {settings.architecture!r}; use gpt2, llama or gpt_neox"
        ) from error
    values |= {name: 0.0 for name in _DROPOUTS if hasattr(known, name)}
    if hasattr(known, "num_key_value_heads"):
        values["num_key_value_heads"] = settings.num_heads
    if hasattr(known, "intermediate_size"):
        gated = getattr(known, "hidden_act", "gelu") == "silu"  # three matrices of 8/3 H cost what two of 4 H do
        values["intermediate_size"] = -(-settings.hidden_size * 8 // 3) if gated else 4 * settings.hidden_size
    for key in settings.overrides:
        if not hasattr(known, key):
            raise ValueError(f"model.overrides.{key}: not a configuration key of {settings.architecture}; remove it")
    return AutoConfig.for_model(settings.architecture, **(values | settings.overrides))


def build_model(
    config: Any,
    settings: ModelSettings,
    seed: int,
    attention: str = "sdpa",
    tokenizer: PreTrainedTokenizerFast | None = None,
    vocabulary: int | None = None,
) -> PreTrainedModel:
    """A model in fp32, the same on every rank.

    Weights are drawn with ``seed``, or read from ``settings.start_from``: any transformers folder with safetensors
    weights, whole or in shards, in any precision, its vocabulary padded or not.

    Args:
        config: From :func:`model_config`.
        settings: The ``model`` section.
        seed: Decides the weights.
        attention: Attention implementation of transformers.
        tokenizer: The run's tokenizer, which the folder to start from must agree with.
        vocabulary: Ids in use, which that folder must have rows for; None asks for as many rows as the model has.

    Raises:
        ValueError: If the weights to start from do not fit the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if settings.start_from is not None:
        vocabulary = vocabulary or config.vocab_size
        check_start(settings.start_from, config, vocabulary, tokenizer)
        weights = _converted_weights(settings.start_from)
        set_weights(model, _fit_vocabulary(model, weights, vocabulary, settings.start_from), settings.start_from)
    if settings.activation_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # reentrant recomputation would fire ZeRO's gradient hooks several times
    return cast(PreTrainedModel, model.float())


def check_start(folder: Path, config: Any, vocabulary: int, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    """Check that the model of a transformers folder is the one that a run describes.

    Args:
        folder: The folder, ``model.start_from``.
        config: The run's, from :func:`model_config`.
        vocabulary: Ids in use.
        tokenizer: The run's; None does not compare it with the folder's.

    Raises:
        ValueError: With every key of ``config.json`` that differs and the overrides that mend it, or the token.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json here; name the folder of a saved model, such as RUN_DIR/model")
    if "quantization_config" in read_json(path):
        raise ValueError(f"{path}: quantization_config: quantized weights cannot be trained; take the original model")
    try:
        theirs = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: transformers cannot read it ({str(error).splitlines()[0]})") from error
    if theirs.model_type != config.model_type:
        raise ValueError(
            f"{path}: model_type is {theirs.model_type!r}, the recipe has {config.model_type!r}; "
            f"set model.architecture={theirs.model_type}"
        )
    _check_architecture(path, theirs.to_dict(), config.to_dict())
    if theirs.vocab_size < vocabulary:
        raise ValueError(
            f"{path}: vocab_size is {theirs.vocab_size}, this run uses {vocabulary} ids (data.tokenizer, doubled by "
            f"En-Clone); tokenize with its own tokenizer (data.tokenizer={folder}), and without En-Clone unless "
            "the model has it"
        )
    if tokenizer is not None:
        _check_tokens(folder / "tokenizer.json", tokenizer)


def _check_architecture(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    ignored = (PreTrainedConfig().to_dict().keys() | {*_DROPOUTS, *_WITHOUT_EFFECT}) - {"tie_word_embeddings"}
    settings = {name: f"model.{key}" for names in (_GPT2_NAMES, _COMMON_NAMES) for key, name in names.items()}
    settings |= {"tie_word_embeddings": "model.tied_embeddings", "n_positions": "model.overrides.n_positions"}
    differ = {
        key
        for key in ours.keys() - ignored
        if not key.startswith("summary_") and theirs.get(key) != ours[key]  # that of GPT-2's other tasks
    }
    # What follows from the width or the heads changes with them, even where it is the same now.
    follow = {"intermediate_size", "num_key_value_heads", "head_dim"} & ours.keys() & theirs.keys()
    words = []
    for key in differ | (follow if differ & {"hidden_size", "num_attention_heads"} else set()):
        name = settings.get(key, f"model.overrides.{key}")
        if key == "n_positions" and theirs[key] < ours[key]:
            name = "data.sequence_length"  # the model has no more positions
        value = yaml.safe_dump(theirs.get(key), default_flow_style=True, width=1000).removesuffix("...\n").strip()
        words.append(shlex.quote(f"{name}={value}"))
    lines = [f"  {key}: {theirs.get(key)!r} there, {ours[key]!r} in the recipe" for key in differ]
    if lines:
        raise ValueError(
            "\n".join([f"{path}: another model than the recipe's:", *sorted(lines)])
            + f"\nto start from it, append: {' '.join(sorted(words))}"
        )


def _check_tokens(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Ids must mean the same: every token of the run's tokenizer has its id in the model's own."""
    if not path.is_file():
        _LOGGER.warning("%s: not there; nothing says that this model's ids are those of data.tokenizer", path)
        return
    try:
        theirs = Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # tokenizers has no class of its own
        raise ValueError(f"{path}: not a readable tokenizer ({error}); copy it again") from error
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            raise ValueError(
                f"{path}: token {token!r} has id {theirs.get(token)} there and {number} in data.tokenizer; "
                f"tokenize text and table with the model's own tokenizer: data.tokenizer={path.parent}"
            )


def _converted_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder by this transformers' names, whatever shards, prefixes and precision they are stored in.

    Raises:
        ValueError: If the folder has none as safetensors, or they are not all of the model's and only these.
    """
    _weight_files(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: weights cannot be read ({str(error).splitlines()[0]}); copy it again") from error
    model, found = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            first = sorted(map(str, found[what]))[0]
            raise ValueError(
                f"{folder}: weights do not fit its config.json: {len(found[what])} {what.replace('_', ' ')}, the first "
                f"is {first}; copy the folder again, or save it as a causal language model"
            )
    return dict(model.state_dict())


def load_weights(model: PreTrainedModel, folder: str | Path, vocabulary: int | None = None) -> None:
    """Load the safetensors weights of a model folder, all of them and strictly.

    Args:
        model: The model.
        folder: The folder.
        vocabulary: Ids in use; embeddings may then have any number of rows from this on. None asks for the model's.

    Raises:
        ValueError: If the folder has no weights, or names or shapes differ from the model's.
    """
    own, weights = model.state_dict(), read_weights(folder)
    weights = {name if name in own else _OTHER_NAMES.get(name, name): weight for name, weight in weights.items()}
    if vocabulary is not None:
        weights = _fit_vocabulary(model, weights, vocabulary, folder)
    set_weights(model, weights, folder)


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder's safetensors files by name.

    Raises:
        ValueError: If there are none, or one is missing or damaged.
    """
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in _weight_files(Path(folder)):
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: not a whole safetensors file ({error}); copy it again") from error
    return weights


def _weight_files(folder: Path) -> list[Path]:
    """The shards that the index names, else ``model.safetensors``, else all there are."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth"))
    if not files:
        found = f", only {pickles[0].name}, a pickle, which can run code: convert it to safetensors" if pickles else ""
        raise ValueError(f"{folder}: no *.safetensors here{found or '; name the folder of a saved model'}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: missing, {index.name} names it; copy the folder again")
    return files


def _fit_vocabulary(
    model: PreTrainedModel, weights: dict[str, Tensor], vocabulary: int, source: str | Path
) -> dict[str, Tensor]:
    """The same weights with as many embedding rows as the model has; rows of no id in use stay as they were drawn."""
    own, fitted = model.state_dict(), dict(weights)
    for name in vocabulary_weight_names(model) & weights.keys():
        given, rows = weights[name], own[name].clone()
        if len(given) < vocabulary:
            raise ValueError(f"{source}: {name} has {len(given)} rows, this run uses {vocabulary} ids")
        if len(given) != len(rows) and given.shape[1:] == rows.shape[1:]:
            rows[: len(given)] = given[: len(rows)].to(rows.dtype)
            fitted[name] = rows
    return fitted


def vocabulary_weight_names(model: PreTrainedModel) -> set[str]:
    """Names in the state dict of what has a row for each id: both embeddings, and the LM head's bias if any."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    ids = {id(parameter) for embedding in embeddings for parameter in embedding.parameters()}
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in ids}


def set_weights(model: PreTrainedModel, weights: dict[str, Tensor], source: str | Path) -> None:
    """Give a model all its weights, by name and strictly; tied ones once or twice.

    Raises:
        ValueError: If names or shapes differ from the model's; ``source`` names where the weights are from.
    """
    check_weights(model, weights, source)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()


def check_weights(model: PreTrainedModel, weights: dict[str, Tensor], source: str | Path) -> None:
    """Check that weights are all those of a model, which may be without memory.

    Raises:
        ValueError: If names or shapes differ from the model's; ``source`` names where the weights are from.
    """
    own = model.state_dict()
    tied = tied_weight_names(model)
    wrong = sorted((own.keys() - weights.keys() - tied) | (weights.keys() - own.keys()))
    wrong += [name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape]
    if wrong:
        raise ValueError(
            f"{source}: weights of another model; {len(wrong)} names or shapes differ, the first is {wrong[0]}; "
            "check the model section"
        )


def load_exported(folder: str | Path) -> PreTrainedModel:
    """The causal language model of a transformers folder with safetensors weights, in fp32; never from a hub.

    Raises:
        ValueError: If the folder has no model.
    """
    for name in ("config.json", "*.safetensors"):
        if not list(Path(folder).glob(name)):
            raise ValueError(f"{folder}: no {name} here; name the folder of a saved model, such as RUN_DIR/model")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return cast(PreTrainedModel, model)


def tied_weight_names(model: PreTrainedModel) -> set[str]:
    """Names in the state dict that share another name's tensor: the output embedding, if tied."""
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        return set()
    shared = model.get_output_embeddings().weight
    return {name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is shared} - {
        name for name, tensor in model.named_parameters() if tensor is shared
    }


@torch.no_grad()
def align_perfectly(model: PreTrainedModel, clone_ids: Tensor) -> None:
    """The paper's upper bound: every clone token starts with its original's input and output embedding.

    Args:
        model: The model, its parameters whole.
        clone_ids: int64 of shape (V,), the clone id of each id (``corpus.clone.clone_ids``).
    """
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = cast(Tensor, embedding.weight)
        weight[clone_ids] = weight[: len(clone_ids)].clone()


def lm_loss_sum(logits_BSV: Tensor, targets_BS: Tensor, vocabulary: int) -> Tensor:
    """Sum of the cross-entropies of all targets that are not -100, in fp32 nats.

    Args:
        logits_BSV: Logits over the model's padded vocabulary.
        targets_BS: Target ids, already shifted; -100 is ignored.
        vocabulary: Ids in use; the padding beyond gets no probability.
    """
    logits = logits_BSV[..., :vocabulary].flatten(0, 1).float()
    return functional.cross_entropy(logits, targets_BS.flatten(), ignore_index=-100, reduction="sum")


def lm_loss_sum_of_states(
    states_BSH: Tensor, weight_VH: Tensor, targets_BS: Tensor, vocabulary: int, implementation: str
) -> Tensor:
    """The same as :func:`lm_loss_sum` from the states that the LM head sees, without ever holding all logits.

    Args:
        states_BSH: States after the final norm.
        weight_VH: The output embedding, whole.
        targets_BS: Target ids, already shifted; -100 is ignored.
        vocabulary: Ids in use.
        implementation: ``chunked`` or ``liger``, see :class:`prealign_ds.config.KernelSettings`.
    """
    device, weight_VH = states_BSH.device.type, weight_VH[:vocabulary]
    if torch.is_autocast_enabled(device):  # neither is an operation that autocast knows
        states_BSH, weight_VH = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (states_BSH, weight_VH))
    states, targets = states_BSH.flatten(0, 1), targets_BS.flatten()
    if implementation == "liger":
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        return Liger.apply(states, weight_VH, targets, None, None, -100, 0.0, 0.0, "sum")[0]
    # Without reduction: its sum would be rounded to bf16 with the states.
    losses = functional.linear_cross_entropy(
        states, weight_VH, targets, reduction="none", ignore_index=-100, options=nn.LinearCrossEntropyOptions()
    )
    return losses.float().sum()


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the longest list of modules that all have one class.

    Raises:
        ValueError: If the model has none.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(block) for block in m}) == 1]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of transformer blocks; set kernels.compile=off")
    return max(lists, key=len)


def num_parameters(model: nn.Module, embeddings: bool = True) -> int:
    """Parameters of the model, tied ones once; without ``embeddings``, all but look-up tables and the LM head."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if embeddings:
        return total
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    head = cast(PreTrainedModel, model).get_output_embeddings().weight
    return total - sum((tables | {id(head): head.numel()}).values())


def training_flops(model: PreTrainedModel, sequence_length: int) -> float:
    """Training FLOPs a token: 6 N with the LM head, and 12 L H S for attention (arXiv 2204.02311, appendix B)."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.hidden_size * sequence_length
    return 6 * (num_parameters(model, embeddings=False) + head) + attention
