"""Command lines that end in one clear line instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def run(main: Callable[[], None]) -> None:
    """Run ``main`` and exit.

    Mistakes that a person can mend (ValueError, a missing file) are printed as ``error: ...`` with exit code 2, by the
    first rank alone. An interruption exits with 130. Everything else is a defect and keeps its traceback.
    """
    try:
        main()
    except (ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
        if os.environ.get("PREALIGN_TRACEBACK"):
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command again goes on with what is not done", file=sys.stderr, flush=True)
        sys.exit(130)
