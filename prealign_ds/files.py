"""Files that are complete or absent: atomic writes, hashes, and JSON."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, cast

import pyarrow
from filelock import FileLock, Timeout

_CHUNK = 1 << 22


def shipped(path: Path) -> Path:
    """``path``, or where there is none, what comes with the package by that name (``ds_configs/cpu.json``)."""
    if path.exists() or path.parts[:1] not in (("ds_configs",), ("launchers",)):
        return path
    package = Path(__file__).parent
    return next((root / path for root in (package, package.parent) if (root / path).is_file()), path)


def fsync_path(path: Path) -> None:
    """Flush one file or folder to disk; folders make a rename durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: Path, worker: str, wait_seconds: float = 0) -> Iterator[None]:
    """Keep every other process that claims ``folder`` out of it until the block ends.

    The folder is created, and removed again if the block leaves nothing in it. A claim ends with its process, however
    that ends. File systems that know no locks let everyone in.

    Args:
        folder: The folder.
        worker: What works in it, for the error.
        wait_seconds: How long another may take to leave; a network file system notices late that a machine died.

    Raises:
        ValueError: If another process keeps it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    lock = FileLock(file, timeout=wait_seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder}: another {worker} works in this folder; wait for it, or stop it") from error
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release()
        if [*folder.iterdir()] == [file]:
            file.unlink()
            folder.rmdir()


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file beside ``path`` and rename it onto ``path`` when the block ends without an error.

    Args:
        path: The file to replace; its folder is created.
        mode: ``"w"`` for UTF-8 text or ``"wb"`` for bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        fsync_path(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a fresh folder beside ``path`` that becomes ``path`` when the block ends without an error.

    An existing ``path`` is replaced whole. Every file written in the folder is flushed before the rename.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        yield work
        for item in sorted(work.rglob("*")):
            if item.is_file():
                fsync_path(item)
        os.chmod(work, 0o777 & ~_umask())
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.replace(path, old)
        os.replace(work, path)
        fsync_path(path.parent)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def open_text(path: str | Path) -> TextIO:
    r"""Open a UTF-8 text file for reading, unpacking ``.gz``, ``.xz`` and ``.zst``; a byte order mark is skipped.

    Only ``\n``, ``\r`` and ``\r\n`` end a line, as in every text file of Python.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig"))
    if suffix == ".xz":
        return cast(TextIO, lzma.open(path, "rt", encoding="utf-8-sig"))
    if suffix == ".zst":
        # Arrow rather than zstandard's own stream, which takes a file that was cut short for a whole one.
        unpacked = pyarrow.input_stream(str(path), compression="zstd")
        return io.TextIOWrapper(cast(IO[bytes], unpacked), encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")


def numbered_lines(path: str | Path, keep_empty: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of :func:`open_text` with their numbers from 1, without line ends.

    Args:
        path: The file.
        keep_empty: Whether lines without a visible character count too.

    Raises:
        ValueError: If the file is not UTF-8, or its compressed data is damaged or cut short, with file and line.
    """
    number = 0
    with open_text(path) as handle:
        try:
            for number, line in enumerate(handle, 1):
                if keep_empty or line.strip():
                    yield number, line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            # The line that is read next begins before the block that could not be decoded, which may hold many lines.
            line_number = number + 1 + error.object.count(b"\n", 0, error.start)
            raise ValueError(f"{path}:{line_number}: not UTF-8 text ({error.reason}); convert the file") from error
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{path}:{number + 1}: damaged or cut short ({error}); fetch the file again") from error


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically."""
    with atomic_write(path) as handle:
        json.dump(value, handle, ensure_ascii=False, indent=2)
        handle.write("\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If the file is not valid JSON, with the file, line and column.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a valid JSON file ({error}); restore it or build it again") from error


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON-serialisable value; dictionaries compare by content, not by order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
