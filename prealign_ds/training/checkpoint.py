"""Checkpoints that are complete or absent, and models in transformers' format.

DeepSpeed writes its files into a folder; when every rank has written, rank 0 adds ``manifest.json`` by an atomic
rename. A folder without it is a torn save and is not used. DeepSpeed's files are pickles: load only run folders that
you trust.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prealign_ds.files import atomic_folder, read_json, write_json

_LOGGER = logging.getLogger(__name__)
_MANIFEST = "manifest.json"


def save_checkpoint(
    engine: Any, folder: Path, step: int, state: dict[str, Any], record: dict[str, Any], keep: int
) -> None:
    """Save the engine at ``folder/step-NNNNNNNN``, whole or not at all. All ranks must call it.

    Args:
        engine: The DeepSpeed engine.
        folder: Holds one stage's checkpoints.
        step: Optimizer steps done.
        state: What a resumed run must find unchanged, as JSON (fingerprint, world size, ...).
        record: What else to keep in the manifest, as JSON (settings, ...).
        keep: The newest complete checkpoints to keep; older ones are deleted after this one is complete.
    """
    tag = f"step-{step:08d}"
    engine.save_checkpoint(str(folder), tag=tag, client_state={"step": step}, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        files = {
            str(path.relative_to(folder / tag)): path.stat().st_size
            for path in sorted((folder / tag).rglob("*"))
            if path.is_file() and path.name != _MANIFEST
        }
        write_json(folder / tag / _MANIFEST, {"step": step, "files": files, **state, **record})
        for old in complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; torn ones are named in a warning."""
    found = []
    for path in sorted(folder.glob("step-*")):
        if _is_complete(path):
            found.append(path)
        else:
            _LOGGER.warning("%s: an incomplete save, not used; it can be deleted", path)
    return found


def _is_complete(path: Path) -> bool:
    if not (path / _MANIFEST).is_file():
        return False
    files = read_json(path / _MANIFEST)["files"]
    return all((path / name).is_file() and (path / name).stat().st_size == size for name, size in files.items())


def load_checkpoint(engine: Any, folder: Path, state: dict[str, Any]) -> int:
    """Load the newest complete checkpoint and return the optimizer steps done; 0 where there is none.

    Raises:
        ValueError: If the checkpoint was made with another value of a key in ``state``.
    """
    complete = complete_checkpoints(folder)
    if not complete:
        return 0
    manifest = read_json(complete[-1] / _MANIFEST)
    for key, value in state.items():
        if manifest.get(key) != value:
            raise ValueError(
                f"{complete[-1]}: saved with {key} {manifest.get(key)!r}, this run has {value!r}; "
                "go on with the old value, or choose another run_dir"
            )
    engine.load_checkpoint(str(folder), tag=complete[-1].name)
    return manifest["step"]


def save_model(
    folder: Path,
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    record: dict[str, Any],
) -> None:
    """Write a transformers model folder with fp32 safetensors weights, atomically; rank 0 only.

    Args:
        folder: The folder to write.
        model: Gives the configuration.
        weights: From ``training.engine.full_weights``.
        tokenizer: Saved beside the weights.
        record: Written as ``training.json``: what the model was trained on.
    """
    with atomic_folder(folder) as work:
        model.config.save_pretrained(work)
        tokenizer.save_pretrained(work)
        save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()},
            work / "model.safetensors",
            {"format": "pt"},
        )
        write_json(work / "training.json", record)
