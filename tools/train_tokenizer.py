"""Train a byte-level BPE tokenizer on the training text of one or more corpora.

    python tools/train_tokenizer.py --input data/en/text data/de/text --vocab-size 64000 --output data/tokenizer
    python tools/train_tokenizer.py --input data/en/text --limit-bytes 1e9 --vocab-size 64000 --output data/tokenizer

--limit-bytes takes the first part of each corpus, so that every language weighs the same.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run
from prealign_ds.corpus.documents import TextCorpus
from prealign_ds.corpus.tokenizer import train_tokenizer


def texts(folders: Sequence[str], splits: Sequence[str], limit_bytes: float) -> Iterator[str]:
    """The texts of the splits, at most so many bytes of each corpus."""
    for folder in folders:
        left = limit_bytes
        for split in splits:
            for document in TextCorpus.open(folder).documents(split):
                if left <= 0:
                    break
                left -= len(document.text.encode())
                yield document.text


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="text corpora")
    parser.add_argument("--splits", nargs="+", default=["train"], help="splits to use (default: train alone)")
    parser.add_argument("--vocab-size", type=int, required=True, help="tokens, the end-of-text token included")
    parser.add_argument("--limit-bytes", type=float, default=float("inf"), help="text to use of each corpus")
    parser.add_argument("--output", required=True, help="folder of the tokenizer")
    arguments = parser.parse_args()
    if Path(arguments.output).exists():
        raise ValueError(f"{arguments.output}: exists; choose another folder, or delete it")
    train_tokenizer(
        texts(arguments.input, arguments.splits, arguments.limit_bytes), arguments.vocab_size, arguments.output
    )
    print(f"{arguments.output}: {arguments.vocab_size:,} tokens")


if __name__ == "__main__":
    run(main)
