"""The tokenizer of an exported model, in which En-Clone's tokens have names and can be read.

A clone token is its original's name between ``⟨`` and ``⟩``, white space left outside: ``Ġpiano`` and ``Ġ⟨piano⟩``. No
merge leads to one, so that text is encoded as before; the decoder joins the pieces of a word: `` ⟨piano⟩``. A second
tokenizer, in the folder ``clone``, has the names the other way round: it reads and writes En-Clone as plain text, so
that programs that know nothing of clones can measure and prompt it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from prealign_ds.corpus.clone import clone_ids
from prealign_ds.files import read_json

OPEN, CLOSE = "⟨", "⟩"
CLONE_FOLDER = "clone"
"""Folder of the tokenizer that takes text for En-Clone."""
_PROBE = 'He plays the "old" piano, doesn\'t he?\n  Naïve café: 1984!\n\nÜber 東京 \t<|x|> (e.g.) '


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast, clone: bool, positions: int) -> None:
    """Write the files of a tokenizer, and check that ``AutoTokenizer`` reads the same one from them.

    Args:
        folder: Where to; it holds the model's ``config.json``, which ``AutoTokenizer`` looks at.
        tokenizer: The tokenizer that the model was trained with.
        clone: Whether ids from V to 2V are En-Clone's; their own tokenizer is then written too.
        positions: Tokens that the model can read at once.

    Raises:
        ValueError: If a clone's name is taken, the tokenizer is of an unknown kind, or it would not be read the same.
    """
    ids = np.arange(len(tokenizer))
    _write(folder, tokenizer, positions, with_clone if clone else None, ids)
    if clone:
        _write(folder / CLONE_FOLDER, tokenizer, positions, as_clone, clone_ids(tokenizer))


def _write(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    positions: int,
    change: Callable[[dict[str, Any], PreTrainedTokenizerFast], dict[str, Any]] | None,
    ids: np.ndarray,
) -> None:
    """Write a tokenizer, its description changed, that encodes text to ``ids`` of what the given one does."""
    tokenizer.save_pretrained(folder)
    if change is not None:
        description = change(read_json(folder / "tokenizer.json"), tokenizer)
        (folder / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    # transformers 4 and what is built on it do not know 5's name of this class.
    config = read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": positions}
    config = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    written = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    expected = ids[tokenizer(_PROBE, verbose=False)["input_ids"]].tolist()
    if written(_PROBE, verbose=False)["input_ids"] != expected:
        raise ValueError(f"{tokenizer.name_or_path}: transformers would encode text otherwise than in training")


def with_clone(description: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A ``tokenizer.json`` that also names the ids from V to 2V.

    The clones of special tokens, which occur nowhere (special tokens are shared), are named too: no id lacks a name.

    Raises:
        ValueError: If a clone's name is taken, or the vocabulary is of an unknown kind.
    """
    size, names = len(tokenizer), tokenizer.get_vocab()
    of_bytes = '"ByteLevel"' in json.dumps(description["decoder"])
    spelt = {token["content"]: _spell(token["content"]) for token in description["added_tokens"]} if of_bytes else {}
    clones = {clone_name(spelt.get(name, name)): size + number for name, number in names.items()}
    taken = sorted(names.keys() & clones.keys())
    if taken or len(clones) < len(names):
        raise ValueError(f"{tokenizer.name_or_path}: token {taken[:1]} has the name that a clone token would get")
    decoder = _decoder(description["decoder"], spelt if of_bytes else None)
    return _named(description, names | clones, tokenizer) | {"decoder": decoder}


def as_clone(description: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A ``tokenizer.json`` in which each name that :func:`with_clone` gives stands for the other language's token.

    Raises:
        ValueError: As :func:`with_clone`.
    """
    size, clones = len(tokenizer), clone_ids(tokenizer)
    both = with_clone(description, tokenizer)
    vocab = both["model"]["vocab"]
    numbered = vocab.items() if isinstance(vocab, dict) else [(name, place) for place, (name, _) in enumerate(vocab)]
    back = np.append(clones, np.arange(size))
    back[clones[clones < size] + size] += size  # special tokens are shared, and so are their clones
    ids = {name: int(back[number]) for name, number in numbered}
    added = [token | {"id": ids[token["content"]]} for token in description["added_tokens"]]
    return _named(both, ids, tokenizer) | {"added_tokens": added}


def _named(description: dict[str, Any], ids: dict[str, int], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A ``tokenizer.json`` with these names."""
    model = description["model"]
    together = sorted(ids.items(), key=lambda item: item[1])
    if isinstance(model["vocab"], dict):
        model = model | {"vocab": dict(together)}
    elif model["type"] == "Unigram":
        scores = dict(model["vocab"])
        lowest = min(scores.values())
        model = model | {"vocab": [[name, scores.get(name, lowest)] for name, _ in together]}
    else:
        raise ValueError(
            f"{tokenizer.name_or_path}: a vocabulary of kind {model['type']}; En-Clone needs BPE or Unigram"
        )
    return description | {"model": model}


def clone_name(name: str) -> str:
    """The name of a token's clone."""
    space = "Ġ▁ĊčĉĠ \t\n\r"
    core = name.strip(space)
    before = name[: name.index(core)] if core else name
    return f"{before}{OPEN}{core}{CLOSE}{name[len(before) + len(core) :]}"


def _decoder(decoder: dict[str, Any], spelt: dict[str, str] | None) -> dict[str, Any]:
    """The decoder, then or before it what joins ``⟨pi⟩⟨ano⟩``.

    Byte-level tokens are joined before they become bytes, so that a letter may be in pieces. Whatever is not in the
    alphabet of bytes must be spelt in it: one odd letter would leave all of the text undecoded.
    """

    def replace(old: str, new: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"String": old}, "content": new}

    join = [{"type": "Fuse"}, replace(OPEN + CLOSE, ""), replace(CLOSE + OPEN, "")]
    if spelt is None:
        parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        return {"type": "Sequence", "decoders": [*parts, *join]}
    odd = [replace(token, spelling) for token, spelling in spelt.items() if token != spelling]
    marks = [replace(mark, _spell(mark)) for mark in (OPEN, CLOSE)]
    return {"type": "Sequence", "decoders": [*odd, *join, *marks, decoder]}


def _spell(text: str) -> str:
    """Text in the alphabet of byte-level tokens."""
    letters = bytes_to_unicode()
    return "".join(letters[byte] for byte in text.encode())
