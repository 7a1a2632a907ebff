"""Runs side by side, in one HTML page that needs nothing else.

    python tools/report.py runs/joint runs/prealign --output compare.html

Runs may be unfinished. The page has losses, perplexities, alignment layer by layer, switch rates, speed, frequent words
before and after stage 1, final numbers, and the settings in which the runs differ.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run


def main() -> None:
    """Parse the command line, read the runs, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of runs")
    parser.add_argument("--output", type=Path, required=True, help="the HTML file")
    parser.add_argument("--words", type=int, default=100, help="words in the pictures of stage 1; 0 leaves them out")
    arguments = parser.parse_args()

    from prealign_ds.reporting.comparison import write_comparison

    write_comparison(arguments.runs, arguments.output, arguments.words)
    print(f"{arguments.output} written")


if __name__ == "__main__":
    run(main)
