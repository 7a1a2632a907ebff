"""Hugging Face's Trainer on DeepSpeed, as transformers' documentation shows it: what ``trainer.py`` compares with.

deepspeed --num_gpus 1 tools/benchmarks/_hf_trainer.py --model_dir FOLDER --deepspeed ds_config.json ...
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments


@dataclass
class Files:
    """What to train, on what, and where to say how long it took."""

    model_dir: str
    samples_dir: str
    found: str


class Samples(Dataset):
    """Samples that lie in a file, tokenized and packed."""

    def __init__(self, folder: str):
        self._inputs = np.load(f"{folder}/inputs.npy", mmap_mode="r")
        self._targets = np.load(f"{folder}/targets.npy", mmap_mode="r")

    def __len__(self) -> int:
        """Samples in the file."""
        return len(self._inputs)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Inputs and targets of one length: ``shift_labels`` are targets that need no shifting."""
        targets = np.array(self._targets[index])
        return {"input_ids": np.array(self._inputs[index]), "labels": targets, "shift_labels": targets}


class Clock(TrainerCallback):
    """Remembers when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self.ends.append(time.perf_counter())


def main() -> None:
    """Train; write seconds between the ends of steps, losses, and the type of the logits."""
    parser = HfArgumentParser([Files, TrainingArguments])  # type: ignore[list-item]
    files, arguments = parser.parse_args_into_dataclasses()
    model = AutoModelForCausalLM.from_pretrained(files.model_dir)
    clock, types = Clock(), []

    def note_type(module: Any, inputs: Any, output: torch.Tensor) -> None:
        types.append(str(output.dtype))
        hook.remove()

    hook = model.get_output_embeddings().register_forward_hook(note_type)
    trainer = Trainer(model=model, args=arguments, train_dataset=Samples(files.samples_dir), callbacks=[clock])
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    seconds = np.diff(clock.ends).tolist()
    Path(files.found).write_text(json.dumps({"seconds": seconds, "losses": losses, "logits": types[0]}))


if __name__ == "__main__":
    main()
