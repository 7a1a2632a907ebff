"""Translations that the target text has: kept, ranked, cut."""

import sys
from subprocess import run

import pytest
from conftest import REPOSITORY

from prealign_ds.alignment.attestation import attestations, attested
from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.corpus.fetch import fetch

GERMAN = ["Das Haus und die Bank.", "die Bank am Ufer, das Ufer der Spree"]


def test_words_count_in_any_case_and_several_words_as_their_rarest():
    found = attestations(GERMAN, "de", ["bank", "Ufer", "das Haus", "das Boot", "Banken", ""])
    assert found == {"bank": 2, "Ufer": 2, "das Haus": 1, "das Boot": 0, "Banken": 0, "": 0}


def test_without_spaces_text_is_cut_into_the_longest_translations():
    found = attestations(["銀行在河岸。銀行。", "河 岸"], "zh", ["銀行", "河岸", "岸", "行在", "沙"])
    assert found == {"銀行": 2, "河岸": 1, "岸": 1, "行在": 0, "沙": 0}


def test_the_frequent_come_first_the_unseen_go_and_other_languages_stay():
    pairs = [
        Pair("bank", language, text, "d") for language, text in [("de", "Geldhaus"), ("de", "Ufer"), ("fr", "rive")]
    ]
    pairs += [Pair("bank", "de", "Bank", "d"), Pair("bank", "de", "Ufer", "e"), Pair("the", "de", "die", "d")]
    texts = {"de": [*GERMAN, "Bank"]}
    kept, shares = attested(pairs, texts)
    assert shares == {"de": (4, 5)}
    assert [(p.word, p.translation) for p in kept if p.language == "de"] == [
        ("bank", "Bank"),
        ("bank", "Ufer"),
        ("bank", "Ufer"),
        ("the", "die"),
    ]
    assert Pair("bank", "fr", "rive", "d") in kept
    cut, _ = attested(pairs, texts, most=1)
    assert [p.translation for p in cut if p.language == "de"] == ["Bank", "die"] and len(cut) == 3


def tool(*arguments):
    return run(
        [sys.executable, REPOSITORY / "tools/build_table.py", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture
def built(tmp_path):
    for language, texts in (("en", ["the bank and the house"] * 3), ("de", GERMAN)):
        (tmp_path / f"{language}.txt").write_text("\n".join(texts))
        fetch(tmp_path / language, [str(tmp_path / f"{language}.txt")], language, {"train": 1.0})
    (tmp_path / "de.tsv").write_text("bank\tGeldhaus\nbank\tUfer\nbank\tBank\nhouse\tHaus\nhouse\tGeldhaus\n")
    return tmp_path


def test_the_tool_says_what_the_target_text_lacks(built):
    base = ["--corpus", built / "en", "--source", f"{built}/de.tsv:de", "--output", built / "t.jsonl"]
    done = tool(*base, "--target", f"{built}/de:de", "--senses", 1)
    assert done.returncode == 0 and "60.0%" in done.stdout, done.stderr
    table = AlignmentTable.load(built / "t.jsonl")
    assert table.translations("bank") == {"de": ("Ufer",)} and table.translations("house") == {"de": ("Haus",)}
    for wrong, message in [
        (["--target", built / "de"], "write it as CORPUS:LANG"),
        (["--senses", 0], "give 1 or more"),
    ]:
        done = tool(*base, *wrong)
        assert done.returncode == 2 and message in done.stderr
