"""How fast samples come: the stream beside megatron-core's GPTDataset, the wait for them, the opening of a large index.

    python tools/benchmarks/fetch.py
    python tools/benchmarks/fetch.py --text en.jsonl.xz --source en-de.tsv.xz:de --source en-ru.tsv.xz:ru

One process, one core, one sample at a time. Without --text, the text is made up: Zipf-distributed words with capitals,
apostrophes, digits and punctuation. Without --source, so are the translations.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from prealign_ds.alignment.counting import count_words
from prealign_ds.alignment.sources import Pair, read_pairs
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.switcher import CodeSwitcher
from prealign_ds.corpus.documents import read_file
from prealign_ds.corpus.tokenizer import load_tokenizer, train_tokenizer
from prealign_ds.corpus.tokens import CorpusTokens, IndexedDatasetBuilder
from prealign_ds.stream.loader import MicroBatches, make_loader
from prealign_ds.stream.stream import CodeSwitchedStream, StreamCorpus
from tools.benchmarks import ratios, spread
from tools.benchmarks._made_up import first_characters, made_up_pairs, made_up_texts

SEQUENCE_LENGTH = 1024
RATIO = 0.05
VOCABULARY = 32_000
TEXT_CHARACTERS = 8_000_000
BLOCK, TURN = 300, 20  # samples in one measurement; samples of one dataset before those of the other
MICRO_BATCH, MICRO_BATCHES, STEP_S = 8, 100, 0.028  # 290,000 tokens/s
INDEX_DOCUMENTS, DOCUMENT_TOKENS = 1_000_000, 1_000

_OPEN = """
import os, sys, time
from prealign_ds.corpus.tokens import CorpusTokens
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
before, start = resident_mb(), time.perf_counter()
tokens = CorpusTokens(sys.argv[1])
seconds = time.perf_counter() - start
tokens.read(tokens.num_tokens // 2, 1025).sum()
print(seconds, resident_mb() - before)
"""


def build_stream(scratch: Path, text: Path | None = None, sources: Sequence[str] = ()) -> CodeSwitchedStream:
    """A stream over one corpus, 5 % of whose words are switched.

    Args:
        scratch: An empty folder for what is built: tokenizer/, text.bin and text.idx.
        text: Text file to read, at most :data:`TEXT_CHARACTERS`; None makes one up.
        sources: Dictionaries as ``FILE:LANGUAGE``; none makes translations up.
    """
    documents = made_up_texts() if text is None else (document.text for document in read_file(text))
    texts = list(first_characters(documents, TEXT_CHARACTERS))
    tokens = tokenize_texts(texts, VOCABULARY, scratch)
    counts = count_words(texts, workers=1)
    pairs = made_up_pairs(counts) if not sources else _read_all(sources)
    switcher = CodeSwitcher(AlignmentTable.from_pairs(counts, pairs, 2), load_tokenizer(scratch / "tokenizer"))
    corpus = StreamCorpus("text", "en", tokens, 1.0, True, tokens.digest)
    return CodeSwitchedStream([corpus], SEQUENCE_LENGTH, 0, switcher, RATIO)


def measure_fetch(stream: CodeSwitchedStream, prefix: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Time per sample of our stream over that of Megatron's GPTDataset, on the same file.

    Ours gives arrays, Megatron's tensors; each is read in its own random order, a few samples at a time in turn.
    All samples are read once before they are timed, so that their words are known, as they are in a long run: our
    switcher encodes the translations of a word when it first meets it. ``fetch_first_tokens_per_s`` is the speed of
    that first reading.

    Args:
        stream: The stream, not read before.
        prefix: Its tokens.
        repeats: Pairs of blocks.

    Returns:
        ``fetch_vs_megatron``, ``fetch_tokens_per_s``, ``fetch_first_tokens_per_s`` and ``megatron_tokens_per_s``, each
        with min, median and max.
    """
    megatron = _megatron_dataset(prefix, repeats * BLOCK)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    blocks = [range(repeat * BLOCK, (repeat + 1) * BLOCK) for repeat in range(repeats)]
    first = [_seconds(stream, megatron, block)[0] for block in blocks]
    ours, theirs = zip(*(_seconds(stream, megatron, block) for block in blocks), strict=True)
    torch.set_num_threads(threads)
    return {
        "fetch_vs_megatron": ratios(ours, theirs),
        "fetch_tokens_per_s": spread([BLOCK * SEQUENCE_LENGTH / seconds for seconds in ours]),
        "fetch_first_tokens_per_s": spread([BLOCK * SEQUENCE_LENGTH / seconds for seconds in first]),
        "megatron_tokens_per_s": spread([BLOCK * SEQUENCE_LENGTH / seconds for seconds in theirs]),
    }


def measure_wait(stream: CodeSwitchedStream, repeats: int) -> dict[str, dict[str, float]]:
    """The share of a step that waits for the loader, beside a device that takes :data:`STEP_S` for a micro-batch.

    The device is a sleep, which leaves Python to the loader, as the wait for a GPU does.

    Args:
        stream: The stream.
        repeats: Readings of the same micro-batches, after one that is not counted: their words are known then.

    Returns:
        ``loader_wait_share``, with min, median and max; the first batch of a reading is not counted.
    """
    indices = MicroBatches(0, MICRO_BATCHES * MICRO_BATCH, MICRO_BATCH, MICRO_BATCH, 0, 1)
    shares = []
    for _ in make_loader(stream, indices):
        pass
    for _ in range(repeats):
        waited, batches = 0.0, make_loader(stream, indices)
        next(batches)
        begun = time.perf_counter()
        for _ in range(MICRO_BATCHES - 1):
            time.sleep(STEP_S)
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
        shares.append(waited / (time.perf_counter() - begun))
    return {"loader_wait_share": spread(shares)}


def measure_index(scratch: Path, repeats: int, documents: int = INDEX_DOCUMENTS) -> dict[str, dict[str, float]]:
    """Seconds and resident memory (MB) that opening a large index takes, each in a process of its own.

    Args:
        scratch: A folder for an index of 20 bytes a document and a .bin file without content.
        repeats: Processes.
        documents: Documents in it, of 1,000 tokens each.

    Returns:
        ``index_open_s`` and ``index_rss_mb``, each with min, median and max.
    """
    prefix = scratch / f"large{documents}"
    item = np.dtype(np.uint16).itemsize
    with open(f"{prefix}.idx", "wb") as handle:  # as Megatron writes it; uint16 has code 8
        handle.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, documents, documents + 1))
        np.full(documents, DOCUMENT_TOKENS, dtype=np.int32).tofile(handle)
        (np.arange(documents, dtype=np.int64) * DOCUMENT_TOKENS * item).tofile(handle)
        np.arange(documents + 1, dtype=np.int64).tofile(handle)
    with open(f"{prefix}.bin", "wb") as handle:
        handle.truncate(documents * DOCUMENT_TOKENS * item)
    command = [sys.executable, "-c", _OPEN, str(prefix)]
    outputs = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(repeats)
    ]
    seconds, megabytes = zip(*(map(float, output.split()) for output in outputs), strict=True)
    return {"index_open_s": spread(seconds), "index_rss_mb": spread(megabytes)}


def tokenize_texts(texts: Sequence[str], vocabulary: int, scratch: Path) -> CorpusTokens:
    """Train a tokenizer on texts and write their tokens: ``scratch`` gets tokenizer/, text.bin and text.idx."""
    train_tokenizer(texts, vocabulary, scratch / "tokenizer")
    tokenizer = load_tokenizer(scratch / "tokenizer")
    builder = IndexedDatasetBuilder(str(scratch / "text.bin"), dtype=np.uint16)
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        builder.add_item(torch.tensor([*encoding.ids, tokenizer.eos_token_id]))
        builder.end_document()
    builder.finalize(str(scratch / "text.idx"))
    return CorpusTokens(scratch / "text")


def _read_all(sources: Sequence[str]) -> Iterator[Pair]:
    for source in sources:
        path, _, language = source.rpartition(":")
        yield from read_pairs(path, language, None)


def _megatron_dataset(prefix: Path, samples: int) -> Any:
    """Megatron's dataset as its trainer makes it for GPT, without the attention mask that no fast kernel wants."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        vocab_size, eod, pad = VOCABULARY, 0, None
        unique_identifiers: dict[str, str] = {}

    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=SEQUENCE_LENGTH,
        split="1,0,0",
        path_to_cache=str(prefix.parent / "cache"),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    documents = IndexedDataset(str(prefix))
    places = np.arange(len(documents), dtype=np.int32)
    return GPTDataset(documents, str(prefix), places, samples, Split.train, config)


def _seconds(ours: Dataset, theirs: Dataset, indices: range) -> tuple[float, float]:
    """Seconds that each dataset takes for these samples."""
    seconds = [0.0, 0.0]
    for start in range(0, len(indices), TURN):
        for place, dataset in enumerate((ours, theirs)):
            begin = time.perf_counter()
            for index in indices[start : start + TURN]:
                dataset[index]
            seconds[place] += time.perf_counter() - begin
    return seconds[0], seconds[1]


def main() -> None:
    """Measure all and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--text", type=Path, help="txt, md, html, jsonl or parquet; gz, xz or zst")
    parser.add_argument("--source", action="append", default=[], metavar="FILE:LANG", help="a dictionary; may repeat")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        stream = build_stream(scratch, arguments.text, arguments.source)
        found = measure_fetch(stream, scratch / "text", arguments.repeats)
        found |= measure_wait(stream, arguments.repeats) | measure_index(scratch, arguments.repeats)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
