"""How fast text becomes token files: our whole tokenization beside the bare tokenizer, on all cores of this machine.

    python tools/benchmarks/tokenization.py [--repeats 5] [--megabytes 32] [--text en.jsonl.xz] [--scratch FOLDER]

Ours reads a corpus from the disk and leaves ``.bin/.idx`` with their hashes there, processes started and ended. The
bare tokenizer (Hugging Face tokenizers, with its own threads) encodes the same documents, which are in memory, and
writes nothing: in one call, and in calls of a few hundred documents, which need less memory.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tokenizers import Tokenizer

from prealign_ds.corpus import tokenization
from prealign_ds.corpus.documents import TextCorpus
from prealign_ds.corpus.fetch import fetch
from tools.benchmarks import growth_of, ratios, spread
from tools.benchmarks._made_up import first_characters, made_up_texts

# Every worker imports this file: what takes long to import (PyTorch, transformers) is imported in functions.

CORES = len(os.sched_getaffinity(0))
MEGABYTES = 16 * CORES  # seconds of work for each core: processes take half a second to start
VOCABULARY = 32_000
TRAINING_CHARACTERS = 8_000_000
SPLITS = {"train": 0.9, "valid": 0.1}
DOCUMENTS_A_CALL = 250 * CORES


def measure_tokenization(
    scratch: Path, repeats: int, megabytes: float = MEGABYTES, text: Path | None = None
) -> dict[str, Any]:
    """Ratios of throughputs by the clock, and by the seconds of all cores, which other programs change much less.

    Args:
        scratch: An empty folder on the disk to measure.
        repeats: Turns of each side.
        megabytes: UTF-8 text, in millions of bytes.
        text: Text file to read; None makes text up.

    Returns:
        ``tokenize_vs_raw`` for the bare tokenizer in one call, ``tokenize_vs_raw_calls`` in many, both also by seconds
        of cores (``_cpu``); the speeds; ``tokenize_start_s``, how long processes take to start and end;
        ``tokenize_feeding_share``, the share of the work done by the one process that reads and writes, which bounds
        the cores that can be used; each with min, median and max; and ``growth``.
    """
    from prealign_ds.corpus.tokenizer import train_tokenizer

    corpora = _corpora(scratch, megabytes, text)
    texts = [document.text for document in corpora[-1].documents()]
    train_tokenizer(first_characters(iter(texts), TRAINING_CHARACTERS), VOCABULARY, scratch / "tokenizer")
    _tokenize(corpora[0], scratch)  # imports megatron-core
    kinds: dict[str, Callable[[], None]] = {
        "ours": partial(_tokenize, corpora[-1], scratch),
        "raw": partial(_encode, scratch, texts, len(texts)),
        "raw_calls": partial(_encode, scratch, texts, DOCUMENTS_A_CALL),
    }
    turns: dict[str, list[_Seconds]] = {kind: [] for kind in kinds}
    for repeat in range(repeats):
        for kind in reversed(kinds) if repeat % 2 else kinds:
            turns[kind].append(_measured(kinds[kind]))
    clock = {kind: [turn.clock for turn in found] for kind, found in turns.items()}
    cores = {kind: [turn.cores for turn in found] for kind, found in turns.items()}
    sizes = [corpus.manifest["bytes"] / 1e6 for corpus in corpora]
    smaller = [_measured(partial(_tokenize, corpus, scratch)).cores for corpus in corpora[:-1]]
    costs = [*smaller, statistics.median(cores["ours"])]
    return {
        "tokenize_vs_raw": ratios(clock["raw"], clock["ours"]),
        "tokenize_vs_raw_cpu": ratios(cores["raw"], cores["ours"]),
        "tokenize_vs_raw_calls": ratios(clock["raw_calls"], clock["ours"]),
        "tokenize_vs_raw_calls_cpu": ratios(cores["raw_calls"], cores["ours"]),
        "tokenize_mb_per_s": spread([sizes[-1] / seconds for seconds in clock["ours"]]),
        "raw_mb_per_s": spread([sizes[-1] / seconds for seconds in clock["raw"]]),
        "tokenize_start_s": spread([_start_seconds(corpora[0], scratch) for _ in range(repeats)]),
        "tokenize_feeding_share": ratios([turn.own for turn in turns["ours"]], cores["ours"]),
        "growth": {"tokenize_by_megabytes": growth_of(sizes, costs, "s of all cores")},
    }


def _corpora(scratch: Path, megabytes: float, text: Path | None) -> list[TextCorpus]:
    """The first quarter of the text, the first half, and all."""
    if text is None:
        text = scratch / "made-up.jsonl"
        with open(text, "w") as handle:
            for made_up in first_characters(made_up_texts(), round(megabytes * 1e6)):
                handle.write(json.dumps({"text": made_up}) + "\n")
    sizes = [round(megabytes * 1e6 * share) for share in (0.25, 0.5, 1)]
    return [fetch(scratch / f"text{size}", [str(text)], "en", SPLITS, limit_bytes=size) for size in sizes]


def _tokenize(corpus: TextCorpus, scratch: Path, workers: int | None = None) -> None:
    tokenization.tokenize_corpus(corpus, scratch / "tokenizer", scratch / "tokens", workers)
    shutil.rmtree(scratch / "tokens")


def _encode(scratch: Path, texts: list[str], documents_a_call: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = Tokenizer.from_file(str(scratch / "tokenizer" / "tokenizer.json"))
    for start in range(0, len(texts), documents_a_call):
        tokenizer.encode_batch_fast(texts[start : start + documents_a_call], add_special_tokens=False)


def _start_seconds(corpus: TextCorpus, scratch: Path) -> float:
    """Seconds that starting and ending the processes takes: a text of nearly nothing with them, less that without."""
    little = fetch(scratch / "little", [str(corpus.shards[0])], "en", SPLITS, limit_bytes=100_000)
    real, tokenization._CHUNK_CHARACTERS = tokenization._CHUNK_CHARACTERS, 1
    try:
        with_processes, without = (_measured(partial(_tokenize, little, scratch, n)).clock for n in (None, 1))
    finally:
        tokenization._CHUNK_CHARACTERS = real
    return with_processes - without


class _Seconds(NamedTuple):
    """By the clock, of the cores for this process, and of the cores for it and the processes that it started."""

    clock: float
    own: float
    cores: float


def _measured(work: Callable[[], None]) -> _Seconds:
    begun, own, children = time.perf_counter(), _cpu(resource.RUSAGE_SELF), _cpu(resource.RUSAGE_CHILDREN)
    work()
    own = _cpu(resource.RUSAGE_SELF) - own
    return _Seconds(time.perf_counter() - begun, own, own + _cpu(resource.RUSAGE_CHILDREN) - children)


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=MEGABYTES)
    parser.add_argument("--text", type=Path, help="txt, md, html, jsonl or parquet; gz, xz or zst")
    parser.add_argument("--scratch", type=Path, default=Path(), help="a folder on the disk to measure; default: here")
    arguments = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(CORES)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        found = measure_tokenization(Path(folder), arguments.repeats, arguments.megabytes, arguments.text)
        print(json.dumps(found, indent=2))
