"""Topics from package descriptions: on a made-up index, and on Debian's."""

import pytest

from prealign_ds.corpus.topics import TOPICS, Indexes, build_topics, write_topics
from prealign_ds.evaluation.labelled import read_labelled
from prealign_ds.files import read_json

LONG = "It is described at some length, so that it counts."


def stanza(**fields):
    return "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in fields.items()) + "\n"


def package(name, section, digest=None, **fields):
    return stanza(Package=name, **fields, Section=section, Description_md5=digest or f"md5-{name}")


def description(name, language, text, digest=None):
    return stanza(Package=name, Description_md5=digest or f"md5-{name}", **{f"Description_{language}": text})


@pytest.fixture
def indexes(tmp_path):
    packages = [
        package("chess", "games"), package("chess-data", "contrib/games", Source="chess (1.2)"),
        package("go", "games"), package("stale", "net"), package("curl", "web"), package("libz", "libs"),
        package("tiny", "math"), package("maxima", "math", Source="maxima"), package("twin", "science"),
        package("undescribed", "math"),
    ]  # fmt: skip
    names = ["chess", "chess-data", "go", "stale", "curl", "libz", "maxima", "twin"]
    english = [description(name, "en", f"Title of {name}\n {LONG}\n .\n  * Second part.") for name in names]
    english[names.index("twin")] = description("twin", "en", f"Title of maxima\n {LONG}\n .\n * Second part.")
    german = [
        description("chess", "de", f"Schach\n {LONG} auf Deutsch"),
        description("chess-data", "de", f"Daten\n {LONG} auf Deutsch"),
        description("stale", "de", f"Alt\n {LONG} auf Deutsch", digest="of-an-older-text"),
        description("go", "de", "kurz"),
    ]
    chinese = [
        description("curl", "zh_CN", "网络工具\n 这是一个命令行，\n 工具 curl，用来\n 传输数据，" + "很长很长" * 9)
    ]
    texts = {"Packages": packages, "en": english, "de": german, "zh": chinese}
    for name, stanzas in texts.items():
        (tmp_path / name).write_text("".join(stanzas))
    return Indexes([tmp_path / "Packages"], {language: [tmp_path / language] for language in ("en", "de", "zh")})


def rows(folder, name):
    return sorted(tuple(line.split("\t")) for line in (folder / f"{name}.tsv").read_text().splitlines())


def test_translated_packages_are_the_test_set_and_their_sections_the_labels(indexes, tmp_path):
    counts = write_topics(tmp_path / "out", indexes, 10, 10, seed=0)
    english = {name: f"Title of {name} {LONG} * Second part." for name in ("chess", "go", "stale", "curl", "maxima")}
    assert rows(tmp_path / "out", "test.de") == [("games", f"Schach {LONG} auf Deutsch")]
    assert rows(tmp_path / "out", "test.zh") == [
        ("internet", "网络工具这是一个命令行，工具 curl，用来传输数据，" + "很长很长" * 9)
    ]
    assert rows(tmp_path / "out", "test.en") == [("games", english["chess"]), ("internet", english["curl"])]
    assert rows(tmp_path / "out", "train.en") == [
        ("games", english["go"]), ("internet", english["stale"]), ("science", english["maxima"]),
    ]  # fmt: skip
    assert counts["train.en.tsv"] == {"games": 1, "internet": 1, "science": 1}
    assert read_json(tmp_path / "out/manifest.json")["texts"]["test.zh.tsv"] == {"internet": 1}
    assert read_labelled(tmp_path / "out/train.en.tsv").labels.count("games") == 1


def test_the_seed_decides_which_texts_of_a_topic_are_taken(tmp_path):
    names = [f"p{number}" for number in range(50)]
    (tmp_path / "Packages").write_text("".join(package(name, "games") for name in names))
    (tmp_path / "en").write_text("".join(description(name, "en", f"{name}\n {LONG}") for name in names))
    indexes = Indexes([tmp_path / "Packages"], {"en": [tmp_path / "en"]})

    def taken(folder, per_topic, seed):
        write_topics(tmp_path / folder, indexes, per_topic, 1, seed)
        return set(rows(tmp_path / folder, "train.en"))

    few, more, other = taken("a", 10, 0), taken("b", 20, 0), taken("c", 10, 1)
    assert len(few) == 10 and few < more and few != other


def test_mistakes_are_named(indexes, tmp_path):
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="ar: Debian has no package descriptions"):
        write_topics(tmp_path / "x", Indexes([], {"en": [tmp_path / "en"], "ar": [tmp_path / "empty"]}), 1, 1, 0)
    (tmp_path / "bad").write_text("Package: a\nno field\n")
    with pytest.raises(ValueError, match=r"bad:2: not a field of a Debian index: 'no field'"):
        write_topics(tmp_path / "x", Indexes([tmp_path / "bad"], indexes.descriptions), 1, 1, 0)
    with pytest.raises(ValueError, match="exists; choose another folder"):
        build_topics(tmp_path)


@pytest.mark.network
def test_debian_has_eight_topics_in_four_languages(tmp_path):
    counts = build_topics(tmp_path / "topics", train_per_topic=500, test_per_topic=50)
    assert [*counts] == [f"{name}.tsv" for name in ("train.en", "test.en", "test.de", "test.ru", "test.zh")]
    assert all(set(found) == set(TOPICS) for found in counts.values())
    assert min(counts["train.en.tsv"].values()) > 100 and set(counts["test.de.tsv"].values()) == {50}
    train = read_labelled(tmp_path / "topics/train.en.tsv")
    assert not set(train.texts) & set(read_labelled(tmp_path / "topics/test.en.tsv").texts)
