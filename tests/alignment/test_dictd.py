"""Dictionaries of dictd: what stands in an index and its text, and what is broken about them."""

import gzip
from contextlib import ExitStack

import pytest

from prealign_ds.alignment.dictd import freedict_translations, mueller_translations
from prealign_ds.alignment.sources import Pair, fetch_packaged, read_pairs

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def base64(number):
    digits = DIGITS[number % 64]
    while number := number // 64:
        digits = DIGITS[number % 64] + digits
    return digits


def write_dictionary(folder, articles, packed=True):
    """An index and its text; returns the index. Articles: words of the index, and the text."""
    data, lines = b"\n" * 70_000, ["00databaseinfo\tA\tB"]  # offsets of several digits
    for words, text in articles:
        lines += [f"{word}\t{base64(len(data))}\t{base64(len(text.encode()))}" for word in words]
        data += text.encode()
    (folder / "x.index").write_text("\n".join(lines) + "\n")
    if packed:
        (folder / "x.dict.dz").write_bytes(gzip.compress(data))
    else:
        (folder / "x.dict").write_bytes(data)
    return folder / "x.index"


HOUSE = (
    'house /hˈaʊs/ <n>\n1. Haus <neut> [bauw.], Gebäude (groß; hoch) <neut>\n      "a house" - ein Haus\n see: {home}\n'
)
UNICODE = "über-All /x/\nüberall <adv>; allerorten\n   Synonym: {everywhere}\n"
RUN = """   [rʌn]
   1. _n.
      1) бег, пробег; at a run бегом {см. тж.}
      2) короткая поездка (на машине); _мор. рейс
   2. _v. употр. с предлогами; бежать, что-л. делать изо всех своих сил
"""


@pytest.mark.parametrize("packed", [True, False])
def test_each_article_is_read_once_by_its_printed_headword(tmp_path, packed):
    index = write_dictionary(tmp_path, [(["house", "houses"], HOUSE), (["uber all"], UNICODE)], packed)
    assert list(read_pairs(index, "de")) == [
        Pair("house", "de", "Haus", "x.index"),
        Pair("house", "de", "Gebäude", "x.index"),
        Pair("über-All", "de", "überall", "x.index"),
        Pair("über-All", "de", "allerorten", "x.index"),
    ]


def test_capitals_that_mean_nothing_are_lowered(tmp_path):
    index = write_dictionary(tmp_path, [(["house"], "House /x/\nبيت\n"), (["polish"], "Polish /x/\nبولندي\n")])
    assert [pair.word for pair in read_pairs(index, "ar")] == ["house", "polish"]
    index = write_dictionary(tmp_path, [(["house"], "house /x/\nHaus\n"), (["polish"], "Polish /x/\npolnisch\n")])
    assert [pair.word for pair in read_pairs(index, "de")] == ["house", "Polish"]


def test_mueller_gives_short_russian_parts(tmp_path):
    assert mueller_translations(RUN) == ["бег", "пробег", "короткая поездка", "рейс", "бежать"]
    index = write_dictionary(tmp_path, [(["run"], "run\n" + RUN)])
    assert {(p.word, p.language) for p in read_pairs(index, None, "mueller")} == {("run", "ru")}


@pytest.mark.parametrize(
    ("text", "translations"),
    [
        ("1. банк\n2. банка\n", ["банк", "банка"]),
        ("von ([+ dat]) <prep>\n         Note: als Ausdruck, der Zugehörigkeit\n", ["von"]),
        ("Bezirk /bˈɛz/\n/bˈɛz/\n", ["Bezirk"]),
        ("<n>\n", []),
        ("", []),
        ("a (b, c) d, (unclosed\n", ["a d", "(unclosed"]),
    ],
)
def test_freedict_lists_at_the_margin(text, translations):
    assert freedict_translations(text) == translations


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("house", "x.index:2: expected `headword<TAB>offset<TAB>size` in base 64"),
        ("house\tAb_\tC", "x.index:2: expected"),
        ("house\t\tC", "x.index:2: expected"),
        ("house\tZZZZ\tC", "x.index:2: points behind the end of the text; fetch both files again"),
    ],
)
def test_a_broken_index_is_named_with_its_line(tmp_path, line, message):
    index = write_dictionary(tmp_path, [])
    index.write_text(index.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        list(read_pairs(index, "de"))


@pytest.mark.parametrize("name", ["freedict-eng", "wordnet", "mueller"])
def test_a_name_that_nobody_packages_is_refused(name):
    with (
        ExitStack() as folders,
        pytest.raises(ValueError, match=f"{name}: there is no such file, and the dictionaries"),
    ):
        fetch_packaged(name, folders)


@pytest.mark.network
@pytest.mark.parametrize(("name", "pair"), [("mueller7", ("house", "дом")), ("freedict-eng-rus", ("house", "дом"))])
def test_dictionaries_come_from_debian(name, pair):
    with ExitStack() as folders:
        index, format = fetch_packaged(name, folders)
        assert pair in {(found.word, found.translation) for found in read_pairs(index, "ru", format)}


def test_missing_damaged_or_foreign_files_are_named(tmp_path):
    index = write_dictionary(tmp_path, [(["house"], HOUSE)])
    with pytest.raises(ValueError, match="does not name its language"):
        list(read_pairs(index))
    text = tmp_path / "x.dict.dz"
    whole = text.read_bytes()
    text.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"x\.dict\.dz: damaged or cut short"):
        list(read_pairs(index, "de"))
    text.unlink()
    with pytest.raises(ValueError, match=r"x\.dict\.dz: missing beside the index"):
        list(read_pairs(index, "de"))
    other = tmp_path / "words.tsv"
    other.write_text("a\tb\n")
    with pytest.raises(ValueError, match=r"give the dictionary's file NAME\.index"):
        list(read_pairs(other, "de", "freedict"))
    (tmp_path / "x.dict").write_bytes(b"\n" * 70_000 + "hé".encode("latin-1") + b"\n")
    index.write_text(f"he\t{base64(70_000)}\tD\n")
    with pytest.raises(ValueError, match=r"x\.index:1: its article is not UTF-8"):
        list(read_pairs(index, "de"))
