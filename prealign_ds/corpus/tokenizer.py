"""Tokenizers: training, loading, and the exact bytes behind every token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from prealign_ds.files import atomic_folder, sha256_file

END_OF_TEXT = "<|endoftext|>"
_ANCHOR = "\n"


def train_tokenizer(texts: Iterable[str], vocab_size: int, output: str | Path) -> None:
    """Train a GPT-2-style byte-level BPE tokenizer and write its folder, whole or not at all.

    Args:
        texts: Documents of all languages that the tokenizer shall cover, in the mix it shall reflect.
        vocab_size: Size V of the vocabulary, the end-of-text token included.
        output: Folder to write (``tokenizer.json`` and ``tokenizer_config.json``).

    Raises:
        ValueError: If ``vocab_size`` cannot hold all bytes, or the texts are too few for it.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size {vocab_size}: a byte-level vocabulary needs 257 tokens or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"vocab_size {vocab_size}: the text yields only {tokenizer.get_vocab_size()} tokens; "
            "give more text or a smaller vocabulary"
        )
    with atomic_folder(output) as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT).save_pretrained(folder)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a local folder; never from a hub, never with code from the folder.

    Raises:
        ValueError: If the folder has no ``tokenizer.json`` or the tokenizer names no end-of-text token.
    """
    path = Path(path)
    if not (path / "tokenizer.json").is_file():
        raise ValueError(
            f"{path}: no tokenizer.json; name the folder of a fast tokenizer, or train one (tools/train_tokenizer.py)"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a readable tokenizer ({error}); train or copy it again") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: the tokenizer has no eos_token; name one in tokenizer_config.json")
    return tokenizer


def tokenizer_digest(path: str | Path) -> str:
    """SHA-256 of ``tokenizer.json``, which alone decides the ids."""
    return sha256_file(Path(path) / "tokenizer.json")


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    """The UTF-8 bytes that each token id stands for, and None for special tokens and unused ids.

    Covers byte-level BPE (GPT-2, Llama 3) and SentencePiece-style vocabularies (``▁`` for a space, ``<0xNN>`` bytes).

    Raises:
        ValueError: If the tokenizer is of another kind, so that tokens do not spell the text.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = _component_types(description.get("decoder"))
    if "ByteLevel" in kinds:
        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}

        def spell(token: str) -> bytes:
            return bytes(byte_of[character] for character in token)
    elif kinds & {"Metaspace", "ByteFallback", "Replace"}:

        def spell(token: str) -> bytes:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes([int(token[3:5], 16)])
            return token.replace("▁", " ").encode()
    else:
        raise ValueError(
            f"tokenizer with decoder {sorted(kinds)}: its tokens do not spell the text; "
            "use a byte-level BPE or a SentencePiece-style tokenizer"
        )
    added = {entry["id"]: entry for entry in description.get("added_tokens", [])}
    pieces: list[bytes | None] = [None] * len(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            pieces[index] = None if added[index]["special"] else token.encode()
        elif token not in {tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}:
            pieces[index] = spell(token)
    return pieces


def _component_types(component: dict | None) -> set[str]:
    if not component:
        return set()
    kinds = {component["type"]}
    for child in component.get("decoders", []):
        kinds |= _component_types(child)
    return kinds


class FragmentEncoder:
    """Encodes text as it stands in the middle of a line, so that no tokenizer adds or drops a space before it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._backend = tokenizer.backend_tokenizer
        self.pieces = token_bytes(tokenizer)

    def __call__(self, fragments: Sequence[str]) -> list[np.ndarray | None]:
        """Token ids (int64) of each fragment, or None where the tokenizer cannot spell it exactly.

        Each fragment is encoded behind a line break, which no common pre-tokenization joins to what follows, and the
        tokens of the line break are cut off.
        """
        encodings = self._backend.encode_batch_fast([_ANCHOR + text for text in fragments], add_special_tokens=False)
        return [self._after_anchor(encoding.ids, text) for encoding, text in zip(encodings, fragments, strict=True)]

    def _after_anchor(self, ids: list[int], text: str) -> np.ndarray | None:
        spelled = b""
        for place, token in enumerate(ids):
            spelled += self.pieces[token] or b""
            if spelled.endswith(_ANCHOR.encode()):
                rest = ids[place + 1 :]
                same = b"".join(self.pieces[token] or b"" for token in rest) == text.encode()
                return np.array(rest, dtype=np.int64) if rest and same else None
        return None
