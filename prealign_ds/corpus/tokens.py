"""Token files of a corpus, written document by document and read as one long memory-mapped row of tokens.

The files are Megatron's (``.bin`` with the tokens, ``.idx`` with the documents), read by megatron-core. Documents are
already joined by the end-of-text token, so packing across documents is the order of the file.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from prealign_ds.files import read_json, sha256_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # megatron-core warns about every optional accelerator library it does not find
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

__all__ = ["MANIFEST_FORMAT", "CorpusTokens", "CorpusWriter", "DType", "IndexedDatasetBuilder"]

MANIFEST_FORMAT = 1
_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"


class CorpusWriter:
    """Writes one split of a tokenized corpus, many documents at a time.

    Args:
        prefix: The files to write, without ``.bin`` and ``.idx``.
        dtype: NumPy type of a token.
    """

    def __init__(self, prefix: Path, dtype: type):
        self._prefix, self._dtype = prefix, dtype
        self._builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        self._digest = hashlib.sha256()
        self.counts = {"documents": 0, "tokens": 0, "bytes": 0}

    def add(self, tokens: np.ndarray, lengths: list[int], num_bytes: int) -> None:
        """Add documents.

        Args:
            tokens: Their tokens one behind the other, of the type of the file, each document with its end-of-text.
            lengths: Tokens of each document.
            num_bytes: UTF-8 bytes of their text.
        """
        first = len(self._builder.sequence_lengths)
        self._builder.add_document(tokens, lengths)  # one document of many sequences ...
        self._builder.document_indices[-1:] = range(first + 1, first + len(lengths) + 1)  # ... a document each
        self._digest.update(tokens)  # type: ignore[arg-type]  # reading the file again would take a pass
        for key, value in (("documents", len(lengths)), ("tokens", len(tokens)), ("bytes", num_bytes)):
            self.counts[key] += value

    def finish(self) -> dict[str, Any]:
        """Write the index; what the manifest says of the split."""
        index = f"{self._prefix}.idx"
        self._builder.finalize(index)
        digests = {"bin": self._digest.hexdigest(), "idx": sha256_file(index)}
        return {**self.counts, "dtype": np.dtype(self._dtype).name, "sha256": digests}


class CorpusTokens:
    """One split of a tokenized corpus: ``num_tokens`` tokens in a row.

    Args:
        path: A folder written by ``tools/tokenize_corpus.py``, or the prefix of any Megatron ``.bin/.idx`` pair.
        split: Name of the split in the folder; not used for a bare prefix.

    Raises:
        ValueError: If files are missing, truncated or do not agree with their manifest.
    """

    def __init__(self, path: str | Path, split: str = "train"):
        path = Path(path)
        self.manifest: dict[str, Any] = {}
        if (path / "manifest.json").is_file():
            self.manifest = read_json(path / "manifest.json")
            if self.manifest.get("format") != MANIFEST_FORMAT or "tokenizer" not in self.manifest:
                raise ValueError(f"{path}/manifest.json: not that of a tokenized corpus; tokenize the corpus again")
            if split not in self.manifest["splits"]:
                raise ValueError(
                    f"{path}: no split {split!r}; the manifest has {sorted(self.manifest['splits'])}: "
                    "choose one, or tokenize the corpus again with this split"
                )
            self.prefix = path / split
        elif Path(f"{path}.idx").is_file() or Path(f"{path}.bin").is_file():
            self.prefix = path
        else:
            raise ValueError(f"{path}: no corpus here (no manifest.json, no {path.name}.bin/.idx); build it first")
        self.split = split
        self._check_index()
        index = IndexedDataset(str(self.prefix), mmap=True).index
        dtype = np.dtype(index.dtype)
        end = int(index.sequence_pointers[-1]) + int(index.sequence_lengths[-1]) * dtype.itemsize
        self.num_tokens = self._check_tokens(end, dtype.itemsize)
        # Not megatron's reader: what it returns outlives its memory map, and then reading it is a segmentation fault.
        self._tokens = np.memmap(f"{self.prefix}.bin", dtype=dtype, mode="r").view(np.ndarray)
        self._opened = (path, split)

    def __reduce__(self) -> tuple:
        """Copies in other processes open the files again."""
        return CorpusTokens, self._opened

    @property
    def num_bytes(self) -> int | None:
        """UTF-8 bytes of the text behind the tokens, or None where no manifest says it."""
        return self.manifest["splits"][self.split]["bytes"] if self.manifest else None

    @property
    def digest(self) -> str:
        """A hash that changes with the tokens: the manifest's, or size and name where there is no manifest."""
        if self.manifest:
            return self.manifest["splits"][self.split]["sha256"]["bin"]
        return f"{self.prefix.name}:{self.num_tokens}"

    def check_tokenizer(self, digest: str, path: str | Path) -> None:
        """Raise ValueError unless the tokens were made by the tokenizer with this digest."""
        expected = self.manifest["tokenizer"]["sha256"] if self.manifest else digest
        if digest != expected:
            raise ValueError(
                f"{self.prefix}: tokenized with another tokenizer (sha256 {expected[:12]}…) than {path} "
                f"({digest[:12]}…); name the right tokenizer or tokenize the corpus again"
            )

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to ``count`` tokens from ``start``, fewer at the end of the corpus; a read-only view."""
        return self._tokens[start : start + max(0, count)]

    def _check_index(self) -> None:
        index = Path(f"{self.prefix}.idx")
        for file in (index, Path(f"{self.prefix}.bin")):
            if not file.is_file():
                raise ValueError(f"{file}: missing; tokenize the corpus again")
        size = index.stat().st_size
        with open(index, "rb") as handle:
            header = handle.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError(f"{index}: not a Megatron index; tokenize the corpus again")
        _, _, dtype_code, sequences, documents = _HEADER.unpack(header)
        expected = _HEADER.size + sequences * 12 + documents * 8
        if size != expected:
            raise ValueError(f"{index}: truncated ({size} bytes, {expected} expected); tokenize the corpus again")
        if dtype_code not in {member.value for member in DType}:
            raise ValueError(f"{index}: unknown data type code {dtype_code}; tokenize the corpus again")
        if sequences == 0:
            raise ValueError(f"{index}: holds no documents; tokenize a corpus with text")

    def _check_tokens(self, end: int, item_bytes: int) -> int:
        size = Path(f"{self.prefix}.bin").stat().st_size
        if size != end:
            raise ValueError(f"{self.prefix}.bin: truncated ({size} bytes, {end} expected); tokenize the corpus again")
        tokens = end // item_bytes
        said = self.manifest["splits"][self.split]["tokens"] if self.manifest else tokens
        if tokens != said:
            raise ValueError(
                f"{self.prefix}: {tokens} tokens, but its manifest says {said}: the files do not belong together; "
                "tokenize the corpus again"
            )
        return tokens
