"""Fetch text into a corpus folder; the only step that needs the network.

    python tools/fetch_corpus.py mine.txt 'more/*.jsonl.zst' --language en --output data/en/text
    python tools/fetch_corpus.py 'debian:anarchism:usr/share/doc/anarchism/html/*' --language en --output data/en/text
    python tools/fetch_corpus.py hub:uonlp/CulturaX:en --language en --limit-bytes 50e9 --output data/en/text

Kinds of files: txt, md, html, jsonl, parquet, also gz, xz, zst. For gated data sets set HF_TOKEN. The same command
again goes on after an interruption, and returns at once when all is there.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run
from prealign_ds.corpus.documents import parse_splits
from prealign_ds.corpus.fetch import fetch


def main() -> None:
    """Parse the command line and fetch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", help="files, folders, globs, debian:PACKAGE[:GLOB], hub:DATASET[:CONFIG[:SPLIT]]"
    )
    parser.add_argument("--language", required=True, help="language code")
    parser.add_argument("--output", required=True, help="folder of the corpus")
    parser.add_argument("--splits", default="train=0.98,valid=0.02", help="share of each split, by pages")
    parser.add_argument("--seed", type=int, default=0, help="decides the split of a page")
    parser.add_argument("--limit-bytes", type=float, help="stop after this much text")
    parser.add_argument(
        "--own-language", action="store_true", help="leave out paragraphs in English, where nobody has translated them"
    )
    parser.add_argument("--text-key", default="text", help="key or column of the text")
    arguments = parser.parse_args()
    corpus = fetch(
        arguments.output,
        arguments.sources,
        arguments.language,
        parse_splits(arguments.splits),
        arguments.seed,
        int(arguments.limit_bytes) if arguments.limit_bytes else None,
        arguments.text_key,
        own_language=arguments.own_language,
    )
    manifest = corpus.manifest
    print(
        f"{corpus.path}: {manifest['documents']:,} documents, {manifest['bytes'] / 1e6:,.1f} MB of text, "
        f"{manifest['duplicates']:,} duplicates left out"
    )


if __name__ == "__main__":
    run(main)
