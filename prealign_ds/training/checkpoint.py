"""Checkpoints that are complete or absent, on any number of ranks, and models in transformers' format.

DeepSpeed writes its files into a folder; when those of every rank are on the disk, rank 0 adds ``manifest.json`` by an
atomic rename. A folder without it is a torn save: it is not used, and removed before the next save. DeepSpeed's files
are pickles, which can run code when they are loaded: load only run folders that you trust.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prealign_ds.cli import LocalError
from prealign_ds.files import atomic_folder, atomic_write, digest_of, fsync_path, read_json, sha256_file, write_json
from prealign_ds.training.environment import World

_LOGGER = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_SMALL = 1 << 20  # bytes; smaller files are hashed, larger ones are known by their size
_POLL_S = 0.5


class Checkpoints:
    """The checkpoints of one stage: ``FOLDER/step-NNNNNNNN``.

    Args:
        folder: Their folder.
        world: This process among the ranks; all of them see the folder.
        keep: How many of the newest to keep.
        keep_every: Also keep for good the first one at or after every multiple of so many LM tokens; 0 keeps none.
    """

    def __init__(self, folder: Path, world: World, keep: int = 2, keep_every: int = 0):
        self.folder = folder
        self.world = world
        self._keep, self._keep_every = keep, keep_every
        self._pending: tuple[Path, dict[str, Any], Future[None]] | None = None
        self._thread = ThreadPoolExecutor(1, "fsync of checkpoints")

    def path(self, step: int) -> Path:
        """The folder of the checkpoint after ``step``, whether there is one or not."""
        return self.folder / f"step-{step:08d}"

    def newest(self) -> dict[str, Any] | None:
        """The manifest of the newest complete checkpoint, or None where there is none; all ranks must call it.

        Raises:
            ValueError: If a file of that checkpoint is missing or changed, with its name and what to do.
        """
        return self.world.on_main(self._newest)

    def _newest(self) -> dict[str, Any] | None:
        complete, torn = self._list()
        for path in torn:
            _LOGGER.warning("%s: a save that was interrupted; it is not used, and the next save removes it", path)
        return _verified(complete[-1]) if complete else None

    def _list(self) -> tuple[list[Path], list[Path]]:
        """Complete and torn ones, oldest first."""
        paths = sorted(path for path in self.folder.glob("step-*") if path.is_dir())
        complete = [path for path in paths if (path / _MANIFEST).is_file()]
        return complete, [path for path in paths if path not in complete]

    def save(self, engine: Any, step: int, tokens: int, num_bytes: int, record: dict[str, Any]) -> None:
        """Save the engine; older checkpoints go only when this one is complete. All ranks must call it.

        The files are written when this returns. A thread brings them to the disk (fsync) while training goes on, and
        :meth:`settle` makes the checkpoint complete.

        Args:
            engine: The DeepSpeed engine.
            step: Optimizer steps done in this stage.
            tokens: LM tokens of the run.
            num_bytes: What the files will take, about; so much must be free.
            record: What else the manifest holds, as JSON.

        Raises:
            ValueError: If there is no room, or a file cannot be written.
        """
        self.settle()
        path = self.path(step)
        if self.world.on_main(lambda: self._make_room(path, num_bytes)):
            return  # this step is saved already
        try:
            engine.save_checkpoint(str(self.folder), tag=path.name, client_state={"step": step}, save_latest=False)
        except (OSError, RuntimeError) as error:
            raise self._not_written(path, error) from error
        self._pending = path, {"step": step, "tokens": tokens, **record}, self._thread.submit(self._bring_to_disk, path)

    def settle(self, wait: bool = True) -> bool:
        """Make the save that is under way complete, once the files of all ranks are on the disk.

        All ranks must call it; between steps with ``wait=False``, which costs a small message while a save is under way
        and nothing otherwise.

        Returns:
            Whether no save is under way any more.

        Raises:
            ValueError: If a file cannot be written.
        """
        if self._pending is None:
            return True
        path, record, on_disk = self._pending
        if not wait and self.world.any(not on_disk.done()):
            return False
        try:
            on_disk.result()
        except OSError as error:
            raise self._not_written(path, error) from error
        self._pending = None
        self.world.any(False)  # the files of all ranks are there
        self.world.on_main(lambda: self._complete(path, record))
        return True

    def _bring_to_disk(self, path: Path) -> None:
        for file in path.iterdir():
            if file.name.split("pp_rank_")[-1].startswith(f"{self.world.rank}_") or self.world.is_main:
                fsync_path(file)

    def _not_written(self, path: Path, error: Exception) -> LocalError:
        return LocalError(
            f"{path}: this checkpoint could not be written ({str(error).splitlines()[0]}; "
            f"{shutil.disk_usage(self.folder).free / 1e6:,.0f} MB free); {self._last()}; "
            "make room, then start the same command again"
        )

    def _make_room(self, path: Path, num_bytes: int) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        complete, torn = self._list()
        if path in complete:
            return True
        for other in torn:
            shutil.rmtree(other)
        if complete:
            num_bytes = max(num_bytes, sum(read_json(complete[-1] / _MANIFEST)["files"].values()))
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes:
            raise ValueError(
                f"{path}: a checkpoint takes about {num_bytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; "
                f"{self._last()}; make room (or lower checkpoint.keep), then start the same command again"
            )
        return False

    def _last(self) -> str:
        complete, _ = self._list()
        return f"the last complete one is {complete[-1].name}" if complete else "there is no complete one yet"

    def _complete(self, path: Path, record: dict[str, Any]) -> None:
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        sizes = {str(file.relative_to(path)): file.stat().st_size for file in files}
        hashes = {name: sha256_file(path / name) for name, size in sizes.items() if size < _SMALL}
        manifest = record | {"files": sizes, "sha256": hashes}
        write_json(path / _MANIFEST, manifest | {"digest": digest_of(manifest)})
        fsync_path(self.folder)
        with atomic_write(self.folder / "latest") as handle:
            handle.write(path.name)  # for DeepSpeed's own tools
        complete, _ = self._list()
        for old in complete[: -self._keep]:
            if old not in self._milestones(complete):
                _remove(old)
        shutil.rmtree(self.folder / "universal", ignore_errors=True)

    def _milestones(self, complete: list[Path]) -> list[Path]:
        if not self._keep_every:
            return []
        reached = [0, *(read_json(path / _MANIFEST)["tokens"] // self._keep_every for path in complete)]
        return [path for path, before, now in zip(complete, reached, reached[1:], strict=False) if now > before]

    def convert(self, step: int, check_stop: Callable[[], None]) -> Path:
        """DeepSpeed's universal form of a checkpoint, which any number of ranks and ZeRO 1 to 3 can load.

        Rank 0 converts in a process of its own; the others wait in short messages, so that nothing times out. An
        interrupted conversion leaves nothing that counts. All ranks must call it.

        Returns:
            The folder, whose parent and name are what ``engine.load_checkpoint`` wants.

        Raises:
            ValueError: If the conversion fails, with the file that has its output.
        """
        source = self.path(step)
        target = self.folder / "universal" / source.name
        partial, log = target.with_suffix(".partial"), self.folder / f"convert-{source.name}.log"
        if self.world.on_main(target.is_dir):
            return target
        self.world.on_main(lambda: self._room_for_universal(source, partial))
        process = None
        if self.world.is_main:
            words = ["--input_folder", source, "--output_folder", partial, "--inject_missing_state"]
            with open(log, "w", encoding="utf-8") as handle:
                process = subprocess.Popen(
                    [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *map(str, words)],
                    stdout=handle,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a signal to the job is answered here, not there
                )
        try:
            while self.world.any(process is not None and process.poll() is None):
                time.sleep(_POLL_S)
                check_stop()
        finally:
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
        self.world.on_main(lambda: _finish_conversion(process, partial, target, log))
        return target

    def _room_for_universal(self, source: Path, partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        need = 2 * sum(read_json(source / _MANIFEST)["files"].values())  # fragments first, then whole parameters
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise ValueError(
                f"{source}: converting it for other ranks takes about {need / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB "
                "are free; make room, or resume with the ranks and the ds_config that it was saved with"
            )
        partial.parent.mkdir(exist_ok=True)


def _finish_conversion(process: Any, partial: Path, target: Path, log: Path) -> None:
    if process.returncode:
        raise ValueError(f"{partial}: the conversion failed (code {process.returncode}); its output is in {log}")
    # ZeRO 1 and 2 look for one name of the model's metadata and ZeRO 3 for another.
    names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
    found = next(partial / name for name in names if (partial / name).is_file())
    for name in names:
        if not (partial / name).exists():
            shutil.copy2(found, partial / name)
    _share_adam_step(partial / "zero")
    for file in partial.rglob("*"):
        if file.is_file():
            fsync_path(file)
    partial.rename(target)
    fsync_path(target.parent)
    log.unlink()


def _share_adam_step(folder: Path) -> None:
    """Write Adam's step where each ZeRO stage looks for it: 1 and 2 beside every parameter, 3 in one place.

    1 and 2 also want the version of DeepSpeed there, and each tensor named, which 3 does not write but reads.
    """
    common = folder / "optimizer_state.pt"
    state = torch.load(common, map_location="cpu", weights_only=False)
    steps = list(folder.rglob("step.pt"))
    if "optimizer_state_dict" not in state:
        step = torch.load(steps[0], map_location="cpu", weights_only=False)
        state["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": state["param_groups"]}
        torch.save(state, common)
    elif not steps:
        step = state["optimizer_state_dict"]["state"][0]["step"]
        torch.save({"ds_version": deepspeed.__version__, **state}, common)
        for weights in list(folder.rglob("fp32.pt")):
            torch.save(step, weights.with_name("step.pt"))
            for file in (weights, weights.with_name("exp_avg.pt"), weights.with_name("exp_avg_sq.pt")):
                tensor = torch.load(file, map_location="cpu", weights_only=False)
                torch.save({"param": tensor, "cat_dim": 0}, file)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that an interruption leaves a torn one, not a complete one with missing files."""
    (path / _MANIFEST).unlink()
    fsync_path(path)
    shutil.rmtree(path)


def _verified(path: Path) -> dict[str, Any]:
    manifest = read_json(path / _MANIFEST)
    advice = f"restore it, or delete the folder {path} to go on from the checkpoint before it"
    content = {key: value for key, value in manifest.items() if key != "digest"}
    if digest_of(content) != manifest.get("digest"):
        raise ValueError(f"{path / _MANIFEST}: changed since it was written; {advice}")
    for name, size in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file}: missing; {advice}")
        if file.stat().st_size != size:
            raise ValueError(f"{file}: {file.stat().st_size} bytes, {size} were written; {advice}")
        if name in manifest["sha256"] and sha256_file(file) != manifest["sha256"][name]:
            raise ValueError(f"{file}: other content than was written; {advice}")
    return manifest


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` is a complete checkpoint."""
    return (folder / _MANIFEST).is_file()


def checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """The model's fp32 weights in a complete checkpoint of any ranks and ZeRO stage, without the wrapper's names.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if _verified(folder)["layout"]["zero_stage"]:
        weights = _bf16_optimizer_weights(folder)
        if not weights:
            weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    else:
        file = folder / "mp_rank_00_model_states.pt"
        weights = torch.load(file, map_location="cpu", weights_only=False)["module"]
    return {name.removeprefix("model."): tensor.float() for name, tensor in weights.items()}


def _bf16_optimizer_weights(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights of ``BF16_Optimizer`` (ZeRO-1 in bf16), whose files DeepSpeed's own reader refuses.

    Each rank holds a piece of the flat weights of each group, and where in it which parameter's share lies.

    Returns:
        Nothing where the checkpoint is another optimizer's.
    """

    def rank_of(file: Path) -> int:
        return int(file.name.split("pp_rank_")[-1].split("_")[0])

    shares: dict[str, list[Tensor]] = {}
    for file in sorted(folder.glob("*_optim_states.pt"), key=rank_of):
        state = torch.load(file, map_location="cpu", weights_only=False, mmap=True)["optimizer_state_dict"]
        if "zero_stage" in state or "param_slice_mappings" not in state:
            return {}
        for flat, places in zip(state["single_partition_of_fp32_groups"], state["param_slice_mappings"], strict=True):
            for name, place in places.items():
                shares.setdefault(name, []).append(flat.narrow(0, place.start, place.numel))
    groups = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["param_shapes"]
    shapes = {name: shape for group in groups for name, shape in group.items()} if shares else {}
    return {name: torch.cat(shares[name]).reshape(shape) for name, shape in shapes.items()}


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
