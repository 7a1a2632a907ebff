"""A small corpus, its tokenizer and its tables, as the tools would leave them."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import REPOSITORY, gpt2_style, make_text
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from prealign_ds.alignment.counting import count_words
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.corpus.tokenizer import load_tokenizer, tokenizer_digest
from prealign_ds.files import sha256_file, write_json


def build_data(folder: Path) -> None:
    """``folder`` gets tokenizer/, tokens/ (train, clone, valid) and table.parquet."""
    gpt2_style().save_pretrained(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    texts = {split: [make_text(400, seed + 7 * n) for n in range(number)] for seed, (split, number) in enumerate(
        {"train": 16, "clone": 5, "valid": 2}.items()
    )}  # fmt: skip
    splits = {
        split: write_tokens(folder / "tokens" / split, tokenizer, documents) for split, documents in texts.items()
    }
    digest = {"sha256": tokenizer_digest(folder / "tokenizer"), "vocab_size": 400, "eos_id": tokenizer.eos_token_id}
    write_json(
        folder / "tokens" / "manifest.json", {"format": 1, "language": "en", "tokenizer": digest, "splits": splits}
    )
    AlignmentTable.clone(count_words(texts["train"], workers=1)).save(folder / "table.parquet")


def write_tokens(prefix, tokenizer, documents):
    """A .bin/.idx pair by megatron-core's builder; returns its entry in the manifest."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    tokens = 0
    for text in documents:
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        builder.add_item(torch.tensor(ids))
        builder.end_document()
        tokens += len(ids)
    builder.finalize(f"{prefix}.idx")
    hashes = {kind: sha256_file(f"{prefix}.{kind}") for kind in ("bin", "idx")}
    size = sum(len(text.encode()) for text in documents)
    return {"documents": len(documents), "tokens": tokens, "bytes": size, "dtype": "uint16", "sha256": hashes}


def write_recipe(folder: Path, sequence_length: int = 32, **changes) -> Path:
    """A recipe of both stages on the data of :func:`build_data`: 10 and 10 steps of 256 tokens."""
    tokens = str(folder / "tokens")
    corpora = [
        {"name": "en", "path": tokens, "split": "train", "language": "en", "weight": 3},
        {"name": "clone", "path": tokens, "split": "clone", "language": "clone", "weight": 1, "clone": True},
    ]
    held_out = [corpus | {"split": "valid", "weight": 1} for corpus in corpora]
    optimizer = {"learning_rate": 0.003, "schedule": "linear"}
    recipe = {
        "run_dir": str(folder / "run"),
        "seed": 5,
        "deepspeed": str(REPOSITORY / "tests/distributed/zero1_fp32.json"),
        "lm_tokens": 20 * 256,
        "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2},
        "data": {
            "tokenizer": str(folder / "tokenizer"),
            "sequence_length": sequence_length,
            "corpora": corpora,
            "held_out": held_out,
        },
        "table": {"path": str(folder / "table.parquet")},
        "align": {"budget_share": 0.5, "words_per_step": 16, "micro_batch_size": 2, "optimizer": optimizer},
        "pretrain": {"batch_tokens": 256, "micro_batch_size": 2, "optimizer": optimizer},
        "codeswitch": {"ratio": 0.2},
        "evaluation": {
            "every_tokens": 5 * 256,
            "similarity": {"words": 20},
            "leakage": {"samples": 5, "prompt_tokens": 4, "new_tokens": 6, "batch_size": 2},
        },
        "checkpoint": {"every_tokens": 4 * 256},
    } | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def read_lines(path):
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def series(run, *keys):
    """(stage, step, values of ``keys``) of every line of a run's metrics.jsonl."""
    return [(r["stage"], r["step"], *(r[key] for key in keys)) for r in read_lines(run / "metrics.jsonl")]
