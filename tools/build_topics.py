"""Build a labelled set of 8 topics from Debian's package descriptions, English and translated, for zero-shot transfer.

    python tools/build_topics.py --output data/topics

apt fetches the descriptions (18 MB); no root is needed and nothing is installed. The folder gets train.en.tsv,
test.en.tsv and test.LANGUAGE.tsv for launchers/finetune.py. Debian has no Arabic descriptions to speak of.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run
from prealign_ds.corpus.topics import build_topics


def main() -> None:
    """Parse the command line, build, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--languages", nargs="+", default=["de", "ru", "zh"], help="beside English (default: de ru zh)")
    parser.add_argument("--train-per-topic", type=int, default=2000, help="texts of a topic (default: 2000)")
    parser.add_argument("--test-per-topic", type=int, default=300, help="of a topic and language (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="decides which texts are taken first")
    arguments = parser.parse_args()
    found = build_topics(
        arguments.output, arguments.languages, arguments.train_per_topic, arguments.test_per_topic, arguments.seed
    )
    for name, counts in found.items():
        topics = ", ".join(f"{topic} {counts[topic]}" for topic in sorted(counts))
        print(f"{name}: {counts.total()} ({topics})")


if __name__ == "__main__":
    run(main)
