"""Where a run's numbers go beside its own files: DeepSpeed's monitor and what it writes to."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prealign_ds.config import LogSettings

_WITHOUT_KEY = ("offline", "dryrun", "disabled")


def check_trackers(settings: LogSettings) -> None:
    """Raise ValueError if W&B is asked for and not installed, or has no key; rank 0 writes, and only it need ask."""
    if settings.wandb is None:
        return
    if find_spec("wandb") is None:
        raise ValueError("log.wandb: the package wandb is not installed; `pip install wandb`, or remove log.wandb")
    if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") not in _WITHOUT_KEY:
        raise ValueError(
            "log.wandb: no key; set the environment variable WANDB_API_KEY (never a setting), or WANDB_MODE=offline"
        )


def tracker_sections(settings: LogSettings, run_dir: Path, stage: str) -> dict[str, Any]:
    """The sections of DeepSpeed's configuration that turn on what ``settings`` ask for.

    Args:
        settings: The ``log`` section.
        run_dir: The run's folder: TensorBoard's events go to ``tensorboard/STAGE``, CSV files to ``csv``.
        stage: Name of the stage.
    """
    sections: dict[str, Any] = {}
    if settings.tensorboard:
        sections["tensorboard"] = {"output_path": str(run_dir / "tensorboard"), "job_name": stage}
    if settings.csv:
        sections["csv_monitor"] = {"output_path": str(run_dir), "job_name": "csv"}
    if settings.wandb is not None:
        sections["wandb"] = {"group": run_dir.name} | settings.wandb.model_dump(exclude_none=True)
    return {name: {"enabled": True} | section for name, section in sections.items()}
