"""A progress bar for people at a terminal; files and pipes get the log lines alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from prealign_ds.training.plan import StagePlan

_WIDE_COLUMNS = 76


@contextmanager
def progress_bar(plan: StagePlan, sample: int, shown: bool) -> Iterator[Callable[[int, float | None], None]]:
    """A bar below the log lines as long as the block lasts, where stderr is a terminal.

    Args:
        plan: The stage.
        sample: The sample at which the stage goes on.
        shown: Whether this rank shows one at all.

    Yields:
        Called with the next sample and the newest loss after each step.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda sample, loss: None
        return
    done, length = sample - plan.first_sample, plan.sequence_length
    counts = {"initial": done * length, "total": plan.num_tokens, "unit": "", "unit_scale": True}
    bar = tqdm(desc=plan.name, file=sys.stderr, dynamic_ncols=True, bar_format=_format(None, 0), **counts)
    with bar, logging_redirect_tqdm([logging.getLogger(), logging.getLogger("DeepSpeed")]):

        def update(sample: int, loss: float | None) -> None:
            bar.bar_format = _format(loss, bar.format_dict["ncols"] or 0)
            bar.update((sample - plan.first_sample) * length - bar.n)

        yield update


def _format(loss: float | None, columns: int) -> str:
    """What tqdm fills in, in the order of what a narrow window must not lose."""
    shown = "" if loss is None else f" loss {loss:.3f}"
    if columns < _WIDE_COLUMNS:
        return "{desc} {percentage:.0f}%" + shown + " {rate_fmt} {remaining} {bar}"
    return "{desc} {percentage:.0f}% |{bar}| {n_fmt}/{total_fmt} tokens " + shown + "  {rate_fmt}  {remaining} left"
