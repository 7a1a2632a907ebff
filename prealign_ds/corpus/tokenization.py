"""Tokenizing a text corpus into Megatron's ``.bin/.idx``, on all cores, in an order that no core changes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer
from tqdm import tqdm

from prealign_ds.corpus.documents import Document, TextCorpus, split_of
from prealign_ds.corpus.tokenizer import load_tokenizer, tokenizer_digest
from prealign_ds.files import atomic_folder, digest_of, read_json, sha256_file, write_json

_CHUNK_CHARACTERS = 1 << 20
_CHUNKS_WITHOUT_PROCESSES = 4  # starting processes takes longer than encoding these
_tokenizer: Tokenizer | None = None


def tokenize_corpus(
    text: TextCorpus, tokenizer_path: str | Path, output: str | Path, workers: int | None = None
) -> dict[str, Any]:
    """Write ``SPLIT.bin/.idx`` for every split, each document followed by the end-of-text token, and a manifest.

    Of several processes that ask for the same folder one builds it and the others wait on a file lock.

    Args:
        text: The corpus.
        tokenizer_path: Folder of a fast tokenizer.
        output: Folder to write, whole or not at all.
        workers: Processes; None takes one for each core. The files do not depend on it.

    Returns:
        The manifest.

    Raises:
        ValueError: If a split has no documents, or ``output`` holds other tokens.
    """
    # Not at the head of the file: every worker imports this module, and megatron-core takes seconds and much memory.
    from prealign_ds.corpus.tokens import MANIFEST_FORMAT, DType

    output = Path(output)
    if workers is not None and workers < 1:
        raise ValueError(f"workers: {workers}: give 1 or more, or None for one on each core")
    tokenizer = load_tokenizer(tokenizer_path)
    request = {"tokenizer": tokenizer_digest(tokenizer_path), "text": digest_of(text.manifest)}
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        if output.exists():
            manifest = read_json(output / "manifest.json") if (output / "manifest.json").is_file() else {}
            if manifest.get("request") != request:
                raise ValueError(f"{output}: holds other tokens than asked for; choose another folder, or delete it")
            return manifest
        with atomic_folder(output) as work:
            dtype = DType.optimal_dtype(len(tokenizer))
            splits = _write_splits(work, text, tokenizer.backend_tokenizer, tokenizer.eos_token_id, dtype, workers)
            manifest = {
                "format": MANIFEST_FORMAT,
                "language": text.language,
                "tokenizer": {
                    "sha256": request["tokenizer"],
                    "vocab_size": len(tokenizer),
                    "eos_id": tokenizer.eos_token_id,
                },
                "request": request,
                "splits": splits,
            }
            write_json(work / "manifest.json", manifest)
    return manifest


def _write_splits(
    work: Path, text: TextCorpus, tokenizer: Tokenizer, eos: int, dtype: type, workers: int | None
) -> dict[str, Any]:
    from prealign_ds.corpus.tokens import IndexedDatasetBuilder

    builders = {split: IndexedDatasetBuilder(str(work / f"{split}.bin"), dtype=dtype) for split in text.splits}
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in text.splits}
    progress = tqdm(total=text.manifest["bytes"], unit="B", unit_scale=True, desc="tokens", disable=None)
    for documents, rows in _encoded(text.documents(), tokenizer.to_str(), workers or len(os.sched_getaffinity(0))):
        for document, row in zip(documents, rows, strict=True):
            split = split_of(document.page, text.splits, text.seed)
            builders[split].add_document(np.append(row, eos), [len(row) + 1])
            size = len(document.text.encode())
            for key, value in (("documents", 1), ("tokens", len(row) + 1), ("bytes", size)):
                counts[split][key] += value
            progress.update(size)
    progress.close()
    for split, builder in builders.items():
        if counts[split]["documents"] == 0:
            raise ValueError(
                f"{text.path}: split {split!r} got no document; give more pages, or splits with larger shares"
            )
        builder.finalize(str(work / f"{split}.idx"))
    return {
        split: {
            **counts[split],
            "dtype": np.dtype(dtype).name,
            "sha256": {kind: sha256_file(work / f"{split}.{kind}") for kind in ("bin", "idx")},
        }
        for split in text.splits
    }


def _encoded(
    documents: Iterator[Document], tokenizer: str, workers: int
) -> Iterator[tuple[list[Document], list[np.ndarray]]]:
    """Chunks of documents with their token ids, in order; at most two chunks a worker are under way."""
    chunks = _chunks(documents)
    first = list(islice(chunks, _CHUNKS_WITHOUT_PROCESSES + 1))
    if workers == 1 or len(first) <= _CHUNKS_WITHOUT_PROCESSES:
        _start_worker(tokenizer)
        for chunk in chain(first, chunks):
            yield chunk, _encode([document.text for document in chunk])
        return
    # An executor and not a Pool, which waits without end for a worker that was killed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (tokenizer,)) as pool:
        under_way: deque[tuple[list[Document], Future[list[np.ndarray]]]] = deque()
        for chunk in chain(first, chunks):
            if len(under_way) >= 2 * workers:
                done, result = under_way.popleft()
                yield done, result.result()
            under_way.append((chunk, pool.submit(_encode, [document.text for document in chunk])))
        while under_way:
            done, result = under_way.popleft()
            yield done, result.result()


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _start_worker(tokenizer: str) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _tokenizer = Tokenizer.from_str(tokenizer)
    _tokenizer.no_truncation()
    _tokenizer.no_padding()
    _tokenizer.encode_special_tokens = True  # a text that spells the end-of-text token does not end there


def _encode(texts: list[str]) -> list[np.ndarray]:
    assert _tokenizer is not None
    encodings = _tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
