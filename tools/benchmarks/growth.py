"""How costs grow with the data, in one process and without other processes: each at three sizes, with its exponent.

    python tools/benchmarks/growth.py [--repeats 5]

Seconds are those of the core, the least of all repeats. Tokenization is in tokenization.py, the alignment loss in
alignment.py.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from prealign_ds.alignment.counting import count_words
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.corpus.tokens import CorpusTokens, IndexedDatasetBuilder
from prealign_ds.stream.stream import CodeSwitchedStream, StreamCorpus
from tools.benchmarks import growth_of
from tools.benchmarks._made_up import first_characters, made_up_pairs, made_up_texts
from tools.benchmarks.fetch import RATIO, SEQUENCE_LENGTH, build_stream, measure_index

CORPUS_COPIES = (1, 8, 64)
SEQUENCE_LENGTHS = (512, 2048, 8192)
NUM_DOCUMENTS = (10_000, 100_000, 1_000_000)
TEXT_MEGABYTES = (2, 4, 8)
TABLE_WORDS = (5_000, 10_000, 20_000)
TOKENS_READ = 400_000  # in one measurement


def measure_fetch_growth(scratch: Path, repeats: int) -> dict[str, Any]:
    """Seconds per sample by the tokens of the corpus, which should not matter, and by the length of a sample.

    Args:
        scratch: An empty folder.
        repeats: Measurements of each.
    """
    stream = build_stream(scratch)
    corpora = [_copies(stream.corpora[0].tokens.read(0, 1 << 40), scratch / f"copies{n}", n) for n in CORPUS_COPIES]
    by_tokens = [_with(stream, tokens, SEQUENCE_LENGTH) for tokens in corpora]
    by_length = [_with(stream, corpora[0], length) for length in SEQUENCE_LENGTHS]
    sizes = [tokens.num_tokens for tokens in corpora]
    return {
        "fetch_by_corpus_tokens": growth_of(sizes, _per_sample(repeats, by_tokens)),
        "fetch_by_sequence_length": growth_of(SEQUENCE_LENGTHS, _per_sample(repeats, by_length)),
    }


def measure_table_growth(repeats: int) -> dict[str, Any]:
    """Seconds to count the words of a text, and to build a table of them, with some 12 translations each."""
    texts = [list(first_characters(made_up_texts(), round(megabytes * 1e6))) for megabytes in TEXT_MEGABYTES]
    counts = count_words(texts[-1], workers=1)
    parts = [dict(list(counts.items())[:words]) for words in TABLE_WORDS]
    pairs = [list(made_up_pairs(part)) for part in parts]
    return {
        "counting_by_megabytes": growth_of(
            TEXT_MEGABYTES, _least(repeats, [partial(count_words, text, workers=1) for text in texts])
        ),
        "table_by_pairs": growth_of(
            [len(some) for some in pairs],
            _least(repeats, [partial(AlignmentTable.from_pairs, *both) for both in zip(parts, pairs, strict=True)]),
        ),
    }


def measure_index_growth(scratch: Path, repeats: int) -> dict[str, Any]:
    """Seconds by the clock to open an index of so many documents, each in a process of its own."""
    costs = [measure_index(scratch, repeats, documents)["index_open_s"]["min"] for documents in NUM_DOCUMENTS]
    return {"index_open_by_documents": growth_of(NUM_DOCUMENTS, costs)}


def _copies(tokens: Any, prefix: Path, number: int) -> CorpusTokens:
    """A corpus of these tokens many times over."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=tokens.dtype.type)
    for _ in range(number):
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")
    return CorpusTokens(prefix)


def _with(stream: CodeSwitchedStream, tokens: CorpusTokens, sequence_length: int) -> CodeSwitchedStream:
    corpus = StreamCorpus("text", "en", tokens, 1.0, True, tokens.digest)
    return CodeSwitchedStream([corpus], sequence_length, 0, stream.switcher, RATIO)


def _per_sample(repeats: int, streams: Sequence[CodeSwitchedStream]) -> list[float]:
    """Seconds per sample of each stream."""
    numbers = [TOKENS_READ // stream.sequence_length for stream in streams]
    works = [partial(_read, stream, number) for stream, number in zip(streams, numbers, strict=True)]
    return [cost / number for cost, number in zip(_least(repeats, works), numbers, strict=True)]


def _read(stream: CodeSwitchedStream, number: int) -> None:
    for index in range(number):
        stream[index]


def _least(repeats: int, works: Sequence[Callable[[], Any]]) -> list[float]:
    """The least seconds of each, turn about, after a round that is not counted: words are met for the first time."""
    rounds = [[_seconds(work) for work in works] for _ in range(repeats + 1)]
    return [min(costs) for costs in zip(*rounds[1:], strict=True)]


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    """Measure all and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        growth = measure_fetch_growth(Path(folder), arguments.repeats)
        growth |= measure_index_growth(Path(folder), arguments.repeats) | measure_table_growth(arguments.repeats)
        print(json.dumps({"growth": growth}, indent=2))


if __name__ == "__main__":
    main()
