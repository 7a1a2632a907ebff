"""Where a stage goes on: the checkpoints of a stage, checked to be this run's, for these ranks and this engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prealign_ds.cli import LocalError
from prealign_ds.files import digest_of
from prealign_ds.training.checkpoint import Checkpoints
from prealign_ds.training.engine import checkpoint_bytes
from prealign_ds.training.kernels import Kernels
from prealign_ds.training.plan import StagePlan
from prealign_ds.training.run import Run

_LOGGER = logging.getLogger(__name__)


class StageCheckpoints:
    """The checkpoints of one stage of a run.

    Args:
        run: The run.
        plan: The stage in numbers.
        fingerprint: Of the stream.
        ds_config: The file that ``deepspeed`` names.
        kernels: Decide whose AdamW's state is saved.

    Attributes:
        saved: What the newest one holds (``step``, ``sample``, ``sums``, ``evaluation_pending``); None where there is
            none.

    Raises:
        ValueError: If the newest checkpoint is damaged, or belongs to another run or other data.
    """

    def __init__(self, run: Run, plan: StagePlan, fingerprint: str, ds_config: dict[str, Any], kernels: Kernels):
        saving = run.settings.checkpoint
        folder = run.dir / "checkpoints" / plan.name
        self._run, self._plan = run, plan
        self._files = Checkpoints(folder, run.world, saving.keep, saving.keep_every_tokens)
        self.settle = self._files.settle
        self._identity = {
            "stage": plan.name,
            "tokenizer_sha256": run.tokenizer_digest,
            "vocabulary": run.vocabulary,
            "model": run.settings.model.model_dump(mode="json", exclude={"activation_checkpointing"}),
            "samples": [plan.first_sample, plan.end_sample],
            "fingerprint": fingerprint,
        }
        self._layout: dict[str, Any] = {
            "world_size": plan.world_size,
            "zero_stage": ds_config.get("zero_optimization", {}).get("stage", 0),
            "deepspeed": digest_of([ds_config, kernels.optimizer]),
        }
        self.saved = self._files.newest()
        if self.saved is not None:
            self._check_fits(self.saved)

    def _check_fits(self, saved: dict[str, Any]) -> None:
        path = self._files.path(saved["step"])
        for key, value in self._identity.items():
            if saved.get(key) == value:
                continue
            if key != "fingerprint":
                raise ValueError(
                    f"{path}: saved with {key} {saved.get(key)!r}, this run has {value!r}: a checkpoint of another "
                    "run; move it away, or choose another run_dir"
                )
            if not self._run.settings.checkpoint.accept_other_data:
                raise ValueError(
                    f"{path}: the training data, the table or the switching is not what this checkpoint was trained "
                    "on; put it back, or read the new data from the next sample on: checkpoint.accept_other_data=true"
                )

    def source(self, config: dict[str, Any], poll: Callable[[], None]) -> Path | None:
        """The newest one, in a form that this number of ranks and this engine can load; None where there is none.

        Args:
            config: The DeepSpeed configuration; told to load a universal checkpoint where one is needed.
            poll: Called again and again while it is converted.

        Raises:
            ValueError: If it cannot be converted.
        """
        if self.saved is None:
            return None
        path = self._files.path(self.saved["step"])
        before, now = self.saved["layout"], self._layout
        if before == now or before["zero_stage"] == now["zero_stage"] == 0:
            return path
        if 0 in (before["zero_stage"], now["zero_stage"]):
            raise ValueError(
                f"{path}: saved under ZeRO stage {before['zero_stage']}, {self._run.settings.deepspeed} has "
                f"{now['zero_stage']}; stages 1, 2 and 3 can be exchanged, 0 only resumes 0: choose another ds_config"
            )
        _LOGGER.info(
            "%s: converting %s from %d rank(s) under ZeRO %d to %d under ZeRO %d",
            *(self._plan.name, path, before["world_size"], before["zero_stage"], now["world_size"], now["zero_stage"]),
        )
        config["checkpoint"] = {"load_universal": True}
        return self._files.convert(self.saved["step"], poll)

    def save(self, engine: Any, step: int, sample: int, num_parameters: int, record: dict[str, Any]) -> None:
        """Save the engine after ``step``, when ``sample`` is the next one; all ranks must call it.

        Args:
            engine: The DeepSpeed engine.
            step: Optimizer steps done in this stage.
            sample: Samples of the stream read.
            num_parameters: Of the model.
            record: What else a resumed run needs, as JSON.
        """
        settings = self._run.settings.model_dump(mode="json")
        record = {**self._identity, "sample": sample, "layout": self._layout, "settings": settings, **record}
        weight_bytes = next(engine.module.parameters()).element_size()
        num_bytes = checkpoint_bytes(num_parameters, weight_bytes, self._layout["zero_stage"])
        self._files.save(engine, step, sample * self._plan.sequence_length, num_bytes, record)


def load_checkpoint(engine: Any, source: Path) -> None:
    """Load what :meth:`StageCheckpoints.source` gives into a new engine.

    Raises:
        LocalError: If DeepSpeed cannot load it.
    """
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    try:
        engine.load_checkpoint(str(source.parent), tag=source.name)
    except (RuntimeError, OSError, EOFError, KeyError) as error:
        raise LocalError(
            f"{source}: DeepSpeed cannot load it ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "if it is damaged, delete that folder to go on from the checkpoint before it"
        ) from error
    # From a universal checkpoint, ZeRO-3 gives all groups the numbers of the first, and one step counter to all.
    for group, decay in zip(engine.optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in engine.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
