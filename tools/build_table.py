"""Build the alignment table: the words of a corpus, and their translations from dictionaries or the clone language.

    python tools/build_table.py --corpus data/en --source en-de.tsv.xz:de --source muse-zh.txt:zh --output table.parquet
    python tools/build_table.py --corpus data/en --clone --output clone.parquet

    python tools/build_table.py --corpus data/en --source en-de.tsv:de --target data/de:de --senses 2 --output t.parquet

Dictionaries: MUSE (.txt), .tsv and .jsonl, also packed as .gz, .xz or .zst; dictd's NAME.index with NAME.dict.dz beside
it, of FreeDict (NAME.index:de) and of Mueller (NAME.index:ru:mueller). freedict-eng-deu:de, freedict-eng-ara:ar,
mueller7:ru and the like are fetched from Debian's packages. See prealign_ds/alignment/sources.py.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.alignment.attestation import attested
from prealign_ds.alignment.counting import count_words
from prealign_ds.alignment.inflections import with_inflections
from prealign_ds.alignment.quality import details, qualities, summary
from prealign_ds.alignment.sources import Pair, check_language, fetch_packaged, read_pairs
from prealign_ds.alignment.table import AlignmentTable, table_suffix
from prealign_ds.cli import run
from prealign_ds.corpus.documents import TextCorpus
from prealign_ds.files import atomic_write


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="text corpus of the source language, whose words are counted")
    parser.add_argument("--splits", nargs="+", default=["train"], help="splits to count (default: train alone)")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--source",
        action="append",
        metavar="FILE[:LANG[:FORMAT]]",
        help="a dictionary, or the name of one; may be repeated",
    )
    kind.add_argument("--clone", action="store_true", help="En-Clone: every word is translated by its clone")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="CORPUS:LANG",
        help="text corpus of a target language: translations that it lacks are left out, its frequent ones come first",
    )
    parser.add_argument("--senses", type=int, help="translations kept of a word in each language that has a --target")
    parser.add_argument(
        "--inflections", action="store_true", help="words that no dictionary has get their lemma's translations"
    )
    parser.add_argument("--min-count", type=int, default=2, help="leave out words that occur less often (default: 2)")
    parser.add_argument("--words", help="also write all words of the corpus, one a line (for knowledge.words)")
    parser.add_argument("--output", required=True, help="the table: .parquet or .jsonl")
    arguments = parser.parse_args()
    if arguments.senses is not None and (arguments.senses < 1 or not arguments.target):
        parser.error("--senses: give 1 or more, and a --target, whose frequencies decide which are kept")
    return arguments


def pairs_of(source: str, folders: ExitStack) -> Iterator[Pair]:
    """The pairs of one ``FILE[:LANG[:FORMAT]]`` or ``NAME[:LANG]``, which is fetched."""
    path, language, format, *_ = [*source.split(":"), "", ""]
    if not Path(path).suffix and not Path(path).exists():
        path, format = map(str, fetch_packaged(path, folders))
    return read_pairs(path, language or None, format or None)


def target_of(target: str) -> tuple[str, TextCorpus]:
    """Language and corpus of one ``CORPUS:LANG``.

    Raises:
        ValueError: If the language or the corpus is missing.
    """
    path, colon, language = target.rpartition(":")
    if not colon or not path:
        raise ValueError(f"--target {target}: write it as CORPUS:LANG, for example data/de/text:de")
    check_language(language)
    return language, TextCorpus.open(path)


def texts_of(corpus: TextCorpus, splits: Sequence[str]) -> Iterator[str]:
    """The documents of some splits of a corpus."""
    return (document.text for split in splits for document in corpus.documents(split))


def main() -> None:
    """Count, build, save, report."""
    arguments = parse_arguments()
    shares: dict[str, tuple[int, int]] = {}
    with ExitStack() as folders:
        # What can be wrong with the request is found before the long count.
        table_suffix(arguments.output)
        dictionaries = [pairs_of(source, folders) for source in arguments.source or ()]
        corpus = TextCorpus.open(arguments.corpus)
        targets = dict(target_of(target) for target in arguments.target)
        for text in (corpus, *targets.values()):
            for split in arguments.splits:
                text.check_split(split)
        counts = count_words(texts_of(corpus, arguments.splits))
        if arguments.clone:
            table = AlignmentTable.clone(counts, arguments.min_count)
        else:
            pairs: Iterable[Pair] = itertools.chain.from_iterable(dictionaries)
            if arguments.inflections:
                pairs = with_inflections(pairs, counts, corpus.language)
            texts = {language: texts_of(target, arguments.splits) for language, target in targets.items()}
            pairs, shares = attested(pairs, texts, arguments.senses)
            table = AlignmentTable.from_pairs(counts, pairs, arguments.min_count)
    if arguments.words:
        with atomic_write(arguments.words) as handle:
            handle.writelines(f"{word}\n" for word in counts)
    table.save(arguments.output)
    found = qualities(table, counts)
    samples = Path(arguments.output).with_suffix(".report.txt")
    with atomic_write(samples) as handle:
        handle.write(details(found))
    print(
        f"words: {len(table.words):,}; coverage of running words and of types, by language:\n{summary(found, shares)}"
    )
    print(f"pairs left out: {', '.join(f'{reason} {number:,}' for reason, number in table.dropped.items())}")
    print(f"{samples}: frequent words without a translation, and entries to read")


if __name__ == "__main__":
    run(main)
