"""Tokenize a text corpus into Megatron's .bin/.idx, one pair for each split.

    python tools/tokenize_corpus.py --input data/en/text --tokenizer data/tokenizer --output data/en/tokens

Uses all cores. The folder is complete or absent; the same command again returns at once.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run
from prealign_ds.corpus.documents import TextCorpus
from prealign_ds.corpus.tokenization import tokenize_corpus


def main() -> None:
    """Parse the command line and tokenize."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="text corpus")
    parser.add_argument("--tokenizer", required=True, help="folder of a fast tokenizer")
    parser.add_argument("--output", required=True, help="folder for the tokens")
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    arguments = parser.parse_args()
    manifest = tokenize_corpus(
        TextCorpus.open(arguments.input), arguments.tokenizer, arguments.output, arguments.workers
    )
    for split, counts in manifest["splits"].items():
        print(f"{arguments.output}/{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")


if __name__ == "__main__":
    run(main)
