"""What is exported: the weights, the settings and the record of a run's saved model or checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prealign_ds.config import RunSettings
from prealign_ds.corpus.tokenizer import load_tokenizer, tokenizer_digest
from prealign_ds.files import read_json
from prealign_ds.model import read_weights
from prealign_ds.recipe import parse_settings
from prealign_ds.training.checkpoint import checkpoint_weights, is_checkpoint


@dataclass(frozen=True)
class Source:
    """A model of a run.

    Attributes:
        run_dir: Folder of the run.
        folder: The model's folder or the checkpoint.
        settings: The configuration that it was trained with.
        stage: ``align`` or ``pretrain``, the stage that it comes from.
        tokens: LM tokens of the run that it has read.
        vocabulary: Ids in use.
        layout: A checkpoint's ranks and ZeRO stage; empty for a model folder.
    """

    run_dir: Path
    folder: Path
    settings: RunSettings
    stage: str
    tokens: int
    vocabulary: int
    tokenizer_sha256: str
    layout: dict[str, Any]

    @classmethod
    def open(cls, run_dir: Path, folder: Path) -> Source:
        """Look at a model.

        Raises:
            ValueError: If it is no model of a run, or a checkpoint of elsewhere: DeepSpeed's checkpoints are pickles.
        """
        checkpoint = is_checkpoint(folder)
        if checkpoint and run_dir.resolve() not in folder.resolve().parents:
            raise ValueError(
                f"{folder}: a DeepSpeed checkpoint outside {run_dir}; it is a pickle, which can run code when it is "
                "loaded: name the run folder that it belongs to, and only one that you trust"
            )
        path = folder / ("manifest.json" if checkpoint else "training.json")
        if not path.is_file():
            raise ValueError(f"{folder}: neither a model of a run nor a complete checkpoint ({path.name} is missing)")
        record = read_json(path)
        missing = [key for key in ("tokens", "vocabulary", "tokenizer_sha256", "settings") if key not in record]
        if missing:
            raise ValueError(f"{path}: no {missing[0]}; name a model that training wrote, not one that was exported")
        settings = parse_settings(RunSettings, record["settings"], [], str(path))
        stage = record.get("stage") or ("align" if folder.name == "align" else settings.stages[-1])
        sizes = record["tokens"], record["vocabulary"], record["tokenizer_sha256"]
        return cls(run_dir, folder, settings, stage, *sizes, record.get("layout", {}))

    def weights(self) -> dict[str, Tensor]:
        """The weights in fp32, by transformers' names; a checkpoint's from the shares of all its ranks.

        Raises:
            ValueError: If a file is missing or damaged.
        """
        return checkpoint_weights(self.folder) if is_checkpoint(self.folder) else read_weights(self.folder)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that it was trained with: beside the weights, where the recipe says, or beside other weights.

        Raises:
            ValueError: If none of these is it.
        """
        named = self.settings.data.tokenizer
        for folder in (self.folder, named, self.run_dir / "model", self.run_dir / "align"):
            if (folder / "tokenizer.json").is_file():
                if folder == named and tokenizer_digest(folder) != self.tokenizer_sha256:
                    raise ValueError(f"{folder}: changed since {self.folder} was trained with it; put the old one back")
                return load_tokenizer(folder)
        raise ValueError(f"{named}: no tokenizer.json; put the tokenizer back that {self.folder} was trained with")


def find_model(run_dir: Path, checkpoint: str | None, model: Path | None) -> Path:
    """The folder to export: the one named, the run's final model if none is.

    Args:
        run_dir: Folder of the run.
        checkpoint: ``STAGE/step-N``, ``step-N`` where only one stage has it, or ``newest``.
        model: A folder.

    Raises:
        ValueError: If there is no such folder, with what there is.
    """
    complete = [path for path in sorted((run_dir / "checkpoints").glob("*/step-*")) if is_checkpoint(path)]
    names = [f"{path.parent.name}/{path.name}" for path in complete]
    if checkpoint == "newest" and complete:
        return complete[-1]  # align comes before pretrain
    if checkpoint is not None:
        found = [path for path, name in zip(complete, names, strict=True) if checkpoint in (name, path.name)]
        if len(found) != 1:
            raise ValueError(
                f"--checkpoint {checkpoint}: {'no' if not found else 'more than one'} complete checkpoint of this name "
                f"in {run_dir}; there are: {', '.join(names) or 'none'}"
            )
        return found[0]
    folder = model or run_dir / "model"
    if not folder.is_dir():
        others = [f"--model {run_dir / 'align'}"] if (run_dir / "align").is_dir() else []
        others += [f"--checkpoint {name}" for name in names]
        hint = f"finish the run, or export {' or '.join(others)}" if others else "name the folder of a run that trained"
        raise ValueError(f"{folder}: no model here; {hint}")
    return folder
