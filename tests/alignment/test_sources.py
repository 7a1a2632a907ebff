import gzip
import lzma

import pytest
import zstandard

from prealign_ds.alignment.sources import Pair, clean, read_pairs


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def plain(pairs):
    return [pair[:3] for pair in pairs]


def test_muse(tmp_path):
    path = write(tmp_path / "en-de.txt", "piano Klavier\npiano\tFlügel\n\nbank  Bank\r\n")
    assert list(read_pairs(path, "de")) == [
        Pair("piano", "de", "Klavier", "en-de.txt"),
        Pair("piano", "de", "Flügel", "en-de.txt"),
        Pair("bank", "de", "Bank", "en-de.txt"),
    ]


def test_tsv_of_one_language_and_of_several(tmp_path):
    path = write(tmp_path / "a.tsv", "piano\tKlavier\nwell\tna ja\n")
    assert plain(read_pairs(path, "de")) == [("piano", "de", "Klavier"), ("well", "de", "na ja")]
    path = write(tmp_path / "b.tsv", "piano\tde\tKlavier\nwell\tru\tхорошо\tadverb\n")
    assert plain(read_pairs(path)) == [("piano", "de", "Klavier"), ("well", "ru", "хорошо")]
    assert plain(read_pairs(path, "ru")) == [("well", "ru", "хорошо")]


def test_jsonl_and_the_two_formats_of_the_authors(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"word": "piano", "translations": {"de": ["Klavier", "Flügel"], "zh": ["钢琴"]}}\n'
    )
    assert plain(read_pairs(path)) == [("piano", "de", "Klavier"), ("piano", "de", "Flügel"), ("piano", "zh", "钢琴")]
    path = write(tmp_path / "b.json", '{"words": "bank $ Bank $ Ufer"}\n{"src_text": "apple", "tgt_text": "Apfel"}\n')
    assert plain(read_pairs(path, "de")) == [("bank", "de", "Bank"), ("bank", "de", "Ufer"), ("apple", "de", "Apfel")]


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)]
)
def test_compressed_files_and_damaged_ones(tmp_path, suffix, pack):
    path = tmp_path / f"a.tsv{suffix}"
    packed = pack("".join(f"word{number}\tWort{number}\n" for number in range(3000)).encode())
    path.write_bytes(packed)
    assert plain(read_pairs(path, "de"))[2999] == ("word2999", "de", "Wort2999")
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"a\.tsv.*:\d+: damaged or cut short"):
        list(read_pairs(path, "de"))


def test_a_format_by_name_wins_over_the_suffix(tmp_path):
    path = write(tmp_path / "dictionary", "piano Klavier\n")
    assert plain(read_pairs(path, "de", "muse")) == [("piano", "de", "Klavier")]
    with pytest.raises(ValueError, match="dictionary: the name does not show the format; give one of .*'muse'"):
        read_pairs(path, "de")
    with pytest.raises(ValueError, match="unknown format 'csv'"):
        read_pairs(path, "de", "csv")
    with pytest.raises(ValueError, match="no such dictionary file"):
        read_pairs(tmp_path / "absent.tsv", "de")


def test_cleaning():
    assert clean("\u200f\u202bقلم\u202c \ufeff") == "قلم"
    assert clean(" na\t ja\u200b ") == "na ja"
    assert clean("e\u0301") == "é"
    assert clean("می\u200cخواهم\u200c ") == "می\u200cخواهم"


def test_empty_sides_are_skipped_and_counted(tmp_path):
    path = write(tmp_path / "a.tsv", "piano\t\u200e\n\tKlavier\nbank\tUfer\n")
    with pytest.warns(UserWarning, match=r"a\.tsv: skipped 2 pairs"):
        assert plain(read_pairs(path, "de")) == [("bank", "de", "Ufer")]


@pytest.mark.parametrize(
    ("name", "line", "language", "message"),
    [
        ("a.txt", "piano", "de", "expected `word translation`, found 1 fields"),
        ("a.txt", "grand piano Flügel", "de", "found 3 fields; several words in one need tsv"),
        ("a.txt", "piano Klavier", None, "give the file's language"),
        ("a.tsv", "piano Klavier", "de", "found no tab"),
        ("a.tsv", "piano\tKlavier", None, "give the file's language"),
        ("a.tsv", "piano\tGerman\tKlavier", None, "language 'German': give a code such as de"),
        ("a.jsonl", "{", None, "not valid JSON"),
        ("a.jsonl", "[1]", None, "expected an object"),
        ("a.jsonl", '{"word": "a"}', None, "expected an object"),
        ("a.jsonl", '{"word": "a", "translations": {"de": "b"}}', None, "translations.de: expected a list of strings"),
        ("a.jsonl", '{"word": "a", "translations": {"de": [1]}}', None, "translations.de: expected a list of strings"),
        ("a.jsonl", '{"words": "a b"}', "de", r'found no "\$"'),
        ("a.jsonl", '{"src_text": "a", "tgt_text": "b"}', None, "give the file's language"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, line, language, message):
    good = {"a.txt": "x y", "a.tsv": "x\ty", "a.jsonl": '{"word": "x", "translations": {"de": ["y"]}}'}[name]
    path = write(tmp_path / name, f"{good}\n{line}\n" if language else f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"{name}:2: .*{message}"):
        list(read_pairs(path, language))


def test_bad_language_and_bad_encoding(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\n")
    with pytest.raises(ValueError, match="language 'deutsch'"):
        read_pairs(path, "deutsch")
    path.write_bytes(b"a\tb\nKlavier\tFl\xfcgel\n")
    with pytest.raises(ValueError, match=r"a\.tsv:\d: not UTF-8"):
        list(read_pairs(path, "de"))
