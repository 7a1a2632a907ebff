"""Command lines that end in one clear line instead of a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR)


class LocalError(ValueError):
    """A mistake that a person can mend, met by this rank and perhaps no other."""


def run(main: Callable[[], None]) -> None:
    """Run ``main`` and exit.

    Mistakes that a person can mend (ValueError, a missing file, a full or read-only disk) are printed as ``error: ...``
    with exit code 2; by the first rank alone if all ranks meet them. An interruption exits with 130. Everything else is
    a defect and keeps its traceback.
    """
    rank = os.environ.get("RANK", "0")
    try:
        main()
    except (ValueError, OSError) as error:
        known = not isinstance(error, OSError) or isinstance(error, (FileNotFoundError, IsADirectoryError))
        on_disk = isinstance(error, OSError) and error.errno in _DISK_ERRORS
        if os.environ.get("PREALIGN_TRACEBACK") or not (known or on_disk):
            raise
        if rank == "0" or on_disk or isinstance(error, LocalError):
            who = f" (rank {rank})" if rank != "0" else ""
            print(f"error{who}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command again goes on with what is not done", file=sys.stderr, flush=True)
        sys.exit(130)
