"""What the task files of a folder of tasks call; lm-evaluation-harness imports this from there, as ``task``."""

import json
from pathlib import Path
from typing import Any

import datasets


def documents(file: str, **_: Any) -> dict[str, Any]:
    """The documents of a task, from a JSON-lines file of this folder."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").split("\n")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines if line])}


def held_out(doc: dict[str, Any], results: list[float]) -> dict[str, tuple[float, int]]:
    """Log-likelihood and weight for each figure; end-of-text tokens are predicted, and have no bytes."""
    (loglikelihood,) = results
    return {
        "perplexity": (loglikelihood, doc["tokens"]),
        "word_perplexity": (loglikelihood, doc["words"]),
        "byte_perplexity": (loglikelihood, doc["bytes"]),
        "bits_per_byte": (loglikelihood, doc["bytes"]),
    }
