"""An 8-topic classification task from Debian's package descriptions, which volunteers translate.

It stands in for XNLI where the hub is out of reach. A package's label is its section, merged with its neighbours. Of
each source package one binary package is taken, because the others are described in nearly the same words. Packages
with a translation are the test set, in English too; the others are the training set, in English alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import regex

from prealign_ds.corpus.fetch import apt_get
from prealign_ds.files import atomic_folder, numbered_lines, write_json
from prealign_ds.randomness import key_of

TOPICS = {
    "games": ("games",),
    "graphics": ("graphics",),
    "internet": ("comm", "httpd", "mail", "net", "news", "web"),
    "programming": ("devel", "golang", "haskell", "interpreters", "java", "javascript", "libdevel", "lisp", "ocaml",
                    "perl", "php", "python", "ruby", "rust", "vcs"),
    "science": ("education", "electronics", "gnu-r", "hamradio", "math", "science"),
    "sound_video": ("sound", "video"),
    "system": ("admin", "embedded", "kernel", "shells", "utils"),
    "text": ("editors", "fonts", "tex", "text"),
}  # fmt: skip
"""Sections of each topic. Sections that say nothing of a topic (libs, doc, oldlibs) are left out."""

_TOPIC_OF = {section: topic for topic, sections in TOPICS.items() for section in sections}
_APT_LANGUAGES = {"zh": "zh_CN"}
_MIN_CHARACTERS = 40
_WRAPPED_HAN = regex.compile(r"(?<=[\p{Han}，。、；：（）「」]) (?=[\p{Han}，。、；：（）「」])")
Descriptions = dict[tuple[str, str], str]
"""Texts by package and MD5 of the English description, which tells whether a translation is up to date."""


class Package(NamedTuple):
    """A binary package: its name, that of its source, its topic, and the MD5 of its English description."""

    name: str
    source: str
    topic: str
    digest: str


@dataclass(frozen=True)
class Indexes:
    """Files that apt has fetched: lists of packages, and of descriptions by language, English among them."""

    packages: list[Path]
    descriptions: dict[str, list[Path]]


def build_topics(
    output: str | Path,
    languages: Sequence[str] = ("de", "ru", "zh"),
    train_per_topic: int = 2000,
    test_per_topic: int = 300,
    seed: int = 0,
) -> dict[str, Counter[str]]:
    """Fetch the indexes and write ``train.en.tsv`` and ``test.LANGUAGE.tsv``, lines of ``label<TAB>text``.

    Args:
        output: Folder to write, whole or not at all.
        languages: Languages beside English.
        train_per_topic: At most so many texts of a topic.
        test_per_topic: At most so many texts of a topic in each language.
        seed: Decides, with the package's name, which texts are taken first.

    Returns:
        Texts by topic of each file.

    Raises:
        ValueError: If ``output`` exists, or apt cannot fetch the indexes, or a language has no translation.
    """
    if Path(output).exists():
        raise ValueError(f"{output}: exists; choose another folder, or delete it")
    with tempfile.TemporaryDirectory() as name:
        files = write_topics(output, _fetched(Path(name), languages), train_per_topic, test_per_topic, seed)
    return files


def write_topics(
    output: str | Path, indexes: Indexes, train_per_topic: int, test_per_topic: int, seed: int
) -> dict[str, Counter[str]]:
    """:func:`build_topics` from indexes at hand."""
    descriptions = {
        language: {key: text for file in files for key, text in read_descriptions(file)}
        for language, files in indexes.descriptions.items()
    }
    for language, found in descriptions.items():
        if not found:
            raise ValueError(f"{language}: Debian has no package descriptions in it; leave it out")
    packages = _chosen([package for file in indexes.packages for package in read_packages(file)], descriptions)
    packages.sort(key=lambda package: (key_of("topics", seed, package.name), package.name))
    targets = [language for language in descriptions if language != "en"]
    is_test = {p.name: any((p.name, p.digest) in descriptions[language] for language in targets) for p in packages}
    train = [package for package in packages if not is_test[package.name]]
    test = [package for package in packages if is_test[package.name]]
    rows = {"train.en": _first(train, descriptions["en"], train_per_topic)}
    rows |= {f"test.{language}": _first(test, found, test_per_topic) for language, found in descriptions.items()}
    counts = {f"{name}.tsv": Counter(topic for topic, _ in pairs) for name, pairs in rows.items()}
    with atomic_folder(output) as folder:
        for name, pairs in rows.items():
            text = "".join(f"{topic}\t{text}\n" for topic, text in pairs)
            (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
        write_json(folder / "manifest.json", {"seed": seed, "topics": TOPICS, "texts": counts})
    return counts


def _chosen(packages: Sequence[Package], descriptions: Mapping[str, Descriptions]) -> list[Package]:
    """Of each source package the binary package with the most translations, then the shortest name."""

    def rank(package: Package) -> tuple[int, int, str]:
        translated = sum((package.name, package.digest) in found for found in descriptions.values())
        return -translated, len(package.name), package.name

    best: dict[str, Package] = {}
    for package in sorted(packages, key=rank):
        best.setdefault(package.source, package)
    return list(best.values())


def _first(packages: Sequence[Package], descriptions: Descriptions, per_topic: int) -> list[tuple[str, str]]:
    """(topic, text) of the first ``per_topic`` packages of each topic that are described; each text once."""
    taken: Counter[str] = Counter()
    seen: set[str] = set()
    rows = []
    for package in packages:
        text = descriptions.get((package.name, package.digest))
        if text is not None and text not in seen and taken[package.topic] < per_topic:
            taken[package.topic] += 1
            seen.add(text)
            rows.append((package.topic, text))
    return rows


def read_packages(path: Path) -> Iterator[Package]:
    """The packages of an index that belong to a topic."""
    for fields in _stanzas(path):
        topic = _TOPIC_OF.get(fields.get("Section", "").split("/")[-1])
        if topic and "Description-md5" in fields:
            source = fields.get("Source", fields["Package"]).split(" ")[0]
            yield Package(fields["Package"], source, topic, fields["Description-md5"])


def read_descriptions(path: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """The descriptions of a translation index, each in one line; very short ones are left out."""
    for fields in _stanzas(path):
        key = next((name for name in fields if name.startswith("Description-") and name != "Description-md5"), None)
        if key and "Description-md5" in fields:
            lines = ["" if line == "." else line for line in fields[key].split("\n")]
            text = _WRAPPED_HAN.sub("", " ".join(" ".join(lines).split()))
            if len(text) >= _MIN_CHARACTERS:
                yield (fields["Package"], fields["Description-md5"]), text


def _stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The paragraphs of a Debian control file, field by field; lines of a field are joined by line breaks."""
    fields: dict[str, str] = {}
    name = ""
    for number, line in numbered_lines(path, keep_empty=True):
        if line.startswith((" ", "\t")) and name:
            fields[name] += "\n" + line.strip()
        elif line:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError(f"{path}:{number}: not a field of a Debian index: {line[:60]!r}; fetch it again")
            fields[name] = value.strip()
        elif fields:
            yield fields
            fields, name = {}, ""
    if fields:
        yield fields


def _fetched(folder: Path, languages: Sequence[str]) -> Indexes:
    """Let apt fetch the indexes into ``folder``, from whatever mirrors it has."""
    if shutil.which("apt-get") is None:
        raise ValueError("package descriptions: need apt-get, which this machine does not have; give labelled files")
    codes = {_APT_LANGUAGES.get(language, language): language for language in ("en", *languages)}
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    options = [
        f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}/cache", f"Acquire::Languages={','.join(codes)}",
        "Acquire::GzipIndexes=false",
    ]  # fmt: skip
    own = [word for option in options for word in ("-o", option)]
    done = apt_get(folder, *own, "update")
    listed = apt_get(folder, *own, "indextargets", "--format", "$(CREATED_BY)\t$(LANGUAGE)\t$(FILENAME)")
    indexes = Indexes([], {language: [] for language in codes.values()})
    for kind, code, file in (line.split("\t") for line in listed.stdout.splitlines()):
        if kind == "Packages":
            indexes.packages.append(Path(file))
        elif kind == "Translations" and code in codes:
            indexes.descriptions[codes[code]].append(Path(file))
    if not indexes.packages or not indexes.descriptions["en"]:
        reason = (done.stderr.strip() or "no package list came").splitlines()[-1]
        raise ValueError(f"package descriptions: apt-get could not fetch them ({reason}); check the network")
    return indexes
