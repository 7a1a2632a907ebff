"""The cross-lingual knowledge test: is the true statement the likeliest of four (paper section 4.2 and Figure 3)?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prealign_ds.evaluation.compute import Compute
from prealign_ds.evaluation.intervals import wilson_interval
from prealign_ds.evaluation.scoring import row_nats
from prealign_ds.knowledge.plan import KnowledgePlan

KnowledgeResults = dict[str, dict[str, dict[str, Any]]]
"""Direction to frequency (or ``all``) to ``num_facts``, ``num_correct``, ``accuracy``, ``low`` and ``high``."""


def ask_period(
    plan: KnowledgePlan, period: int, compute: Compute, vocabulary: int, batch_tokens: int, device: torch.device
) -> KnowledgeResults:
    """Accuracy on the facts of a period, by direction and frequency; chance is 25 %.

    A fact is known if its statement with the true object, in the language in which it is asked, has a greater
    summed log-probability than with each of three distractors. All ranks must call it, and all get the same.

    Args:
        plan: The facts.
        period: Number of the period; it should have ended.
        compute: Reaches the model.
        vocabulary: Ids in use.
        batch_tokens: Tokens that one rank computes at once.
        device: Where to put the batches.
    """
    statements = plan.statements(period)
    rows = [row for choices in statements for row in choices]
    nats = row_nats(rows, plan.eos, compute, vocabulary, batch_tokens, device).reshape(len(statements), -1)
    known = nats[:, 0] < nats[:, 1:].min(1)  # a tie is no knowledge
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for fact, is_known in zip(plan.facts(period), known.tolist(), strict=True):
        found[str(fact.direction)][str(fact.frequency)].append(is_known)
    for frequencies in found.values():
        frequencies["all"] = [is_known for kinds in frequencies.values() for is_known in kinds]
    return {
        direction: {frequency: _summary(sum(kinds), len(kinds)) for frequency, kinds in frequencies.items()}
        for direction, frequencies in found.items()
    }


def over_periods(results: Sequence[KnowledgeResults]) -> KnowledgeResults:
    """The mean over periods, as the paper reports it, with the interval over the facts of all of them.

    Beside what each period has: ``num_periods``, and ``period_deviation``, the standard deviation of their accuracies
    (None for one period): where it is well above what the interval suggests, the model was still changing.

    Raises:
        ValueError: If there are no results.
    """
    if not results:
        raise ValueError("knowledge: no period has ended, nothing to average")
    return {
        direction: {frequency: _mean([result[direction][frequency] for result in results]) for frequency in frequencies}
        for direction, frequencies in results[0].items()
    }


def _mean(periods: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [period["accuracy"] for period in periods]
    pooled = _summary(sum(p["num_correct"] for p in periods), sum(p["num_facts"] for p in periods))
    deviation = float(np.std(accuracies, ddof=1)) if len(periods) > 1 else None
    return pooled | {
        "accuracy": float(np.mean(accuracies)),
        "num_periods": len(periods),
        "period_deviation": deviation,
    }


def _summary(correct: int, number: int) -> dict[str, Any]:
    low, high = wilson_interval(correct, number)
    return {
        "num_facts": number,
        "num_correct": correct,
        "accuracy": correct / number,
        "low": low,
        "high": high,
    }
