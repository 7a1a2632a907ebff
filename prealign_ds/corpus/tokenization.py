"""Tokenizing a text corpus into Megatron's ``.bin/.idx``, on all cores, in an order that no core changes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer
from tqdm import tqdm

from prealign_ds.corpus.documents import TextCorpus, document_of, split_of
from prealign_ds.files import atomic_folder, digest_of, read_json, write_json

# Every worker imports this module: what takes long to import (transformers, megatron-core) is imported in functions.

_CHUNK_CHARACTERS = 1 << 19
_CHUNKS_WITHOUT_PROCESSES = 8  # starting processes takes longer than encoding these
_CHUNKS_AHEAD = 4  # for each worker: while one chunk takes long, the others have work


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
        ValueError: If a split has no documents, ``output`` holds other tokens, or a worker was killed.
    """
    from prealign_ds.corpus.tokenizer import load_tokenizer, tokenizer_digest
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
            how = _Encoding(
                tokenizer.backend_tokenizer.to_str(),
                tokenizer.eos_token_id,
                DType.optimal_dtype(len(tokenizer)),
                text.splits,
                text.seed,
            )
            manifest = {
                "format": MANIFEST_FORMAT,
                "language": text.language,
                "tokenizer": {
                    "sha256": request["tokenizer"],
                    "vocab_size": len(tokenizer),
                    "eos_id": tokenizer.eos_token_id,
                },
                "request": request,
                "splits": _write_splits(work, text, how, workers or len(os.sched_getaffinity(0))),
            }
            write_json(work / "manifest.json", manifest)
    return manifest


class _Encoding(NamedTuple):
    """What a worker needs to know: the tokenizer as JSON, the end-of-text token, the type of a token, the splits."""

    tokenizer: str
    eos: int
    dtype: type
    splits: dict[str, float]
    seed: int


class _Documents(NamedTuple):
    """Encoded documents of one split: their tokens one behind the other, the tokens of each, and bytes of text."""

    tokens: np.ndarray
    lengths: list[int]
    num_bytes: int


def _write_splits(work: Path, text: TextCorpus, how: _Encoding, workers: int) -> dict[str, Any]:
    from prealign_ds.corpus.tokens import CorpusWriter

    writers = {split: CorpusWriter(work / split, how.dtype) for split in text.splits}
    with tqdm(total=text.manifest["bytes"], unit="B", unit_scale=True, desc="tokens", disable=None) as progress:
        for chunk in _encoded(_chunks(text.lines()), how, workers):
            for split, documents in chunk.items():
                writers[split].add(*documents)
                progress.update(documents.num_bytes)
    for split, writer in writers.items():
        if writer.counts["documents"] == 0:
            raise ValueError(
                f"{text.path}: split {split!r} got no document; give more pages, or splits with larger shares"
            )
    return {split: writer.finish() for split, writer in writers.items()}


def _chunks(lines: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encoded(chunks: Iterator[list[str]], how: _Encoding, workers: int) -> Iterator[dict[str, _Documents]]:
    """The documents of each chunk by split, chunks in their order, few of them at a time in memory.

    Workers also parse the lines and choose the splits, so that this process, which feeds them, only moves bytes.
    """
    first = list(islice(chunks, _CHUNKS_WITHOUT_PROCESSES + 1))
    if workers == 1 or len(first) <= _CHUNKS_WITHOUT_PROCESSES:
        yield from map(_Encoder(how), chain(first, chunks))
        return
    # An executor and not a Pool, which waits without end for a worker that was killed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (how,)) as pool:
        under_way: deque[Future[dict[str, _Documents]]] = deque()
        try:
            for chunk in chain(first, chunks):
                if len(under_way) >= _CHUNKS_AHEAD * workers:
                    yield under_way.popleft().result()
                under_way.append(pool.submit(_encode, chunk))
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a tokenizing process was killed, most often for want of memory; give fewer workers, or more memory"
            ) from error


class _Encoder:
    """Turns lines of a text corpus into the tokens of each split."""

    def __init__(self, how: _Encoding):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
        self._how = how
        self._tokenizer = Tokenizer.from_str(how.tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # a text that spells the end-of-text token does not end there

    def __call__(self, lines: list[str]) -> dict[str, _Documents]:
        texts: dict[str, list[str]] = {}
        for document in map(document_of, lines):
            split = split_of(document.page, self._how.splits, self._how.seed)
            texts.setdefault(split, []).append(document.text)
        return {split: self._encode(batch) for split, batch in texts.items()}

    def _encode(self, texts: list[str]) -> _Documents:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        rows = [[*encoding.ids, self._how.eos] for encoding in encodings]
        tokens: np.ndarray = np.fromiter(chain.from_iterable(rows), dtype=self._how.dtype)
        return _Documents(tokens, [len(row) for row in rows], sum(len(text.encode()) for text in texts))


_encoder: _Encoder | None = None  # of a worker


def _start_worker(how: _Encoding) -> None:
    global _encoder
    _encoder = _Encoder(how)


def _encode(lines: list[str]) -> dict[str, _Documents]:
    assert _encoder is not None
    return _encoder(lines)
