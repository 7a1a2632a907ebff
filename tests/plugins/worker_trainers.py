"""One step of stage 1 by other trainers on every rank, written to a file.

Usage: worker_trainers.py DATA OUTPUT.safetensors
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[place]) for place in (0, 1, 2)]
sys.argv = [argument for argument in sys.argv if not argument.startswith("--local_rank")]

import deepspeed
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from plugging import Data, one_thread, tiny_model
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from prealign_ds.plugins.hf import AlignmentTrainer, align_in_forward
from prealign_ds.plugins.rows import CodeSwitchedRows

MICRO, ACCUMULATION = 2, 2


def ds_config(zero):
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }


def whole(model):
    """The weights, put together under ZeRO-3; tied ones once."""
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def by_trainer(data, folder, rows, zero=None):
    """SGD of rate 1: what a step takes away is its gradient."""
    model = tiny_model(data, tied=True)
    before = whole(model)
    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ACCUMULATION,
        max_grad_norm=0.0,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        deepspeed=None if zero is None else ds_config(zero),
    )
    trainer = AlignmentTrainer(model, arguments, train_dataset=rows, stage=data.stage())
    trainer.train()
    log = trainer.state.log_history[0]
    after = whole(model)
    found = {name: before[name] - after[name] for name in before}
    return found | {name: torch.tensor(log[name]) for name in ("loss", "alignment_loss", "aligned_cosine")}


def by_accelerate(data, rows, zero):
    model, stage = tiny_model(data, tied=True), data.stage()
    before = whole(model)
    align_in_forward(model, stage)
    config = ds_config(zero) | {"train_micro_batch_size_per_gpu": MICRO, "gradient_accumulation_steps": ACCUMULATION}
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=ACCUMULATION, deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config)
    )
    loader, sgd = DataLoader(rows, batch_size=MICRO), torch.optim.SGD(model.parameters(), lr=1.0)
    wrapped, sgd, loader = accelerator.prepare(model, sgd, loader)
    for micro_step, batch in enumerate(loader):
        if micro_step == ACCUMULATION:
            break
        with accelerator.accumulate(wrapped):
            first = micro_step % ACCUMULATION == 0
            words = stage.batch(0, accelerator.process_index, accelerator.num_processes) if first else None
            outputs = wrapped(**batch, words=words)
            loss = outputs["loss"] + (outputs["alignment_loss"] * ACCUMULATION if first else 0)
            accelerator.backward(loss)
            sgd.step()
            sgd.zero_grad()
    after = whole(model)
    return {name: before[name] - after[name] for name in before}


def main():
    one_thread()
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    data = Data(folder)
    switched, plain = (CodeSwitchedRows(data.rows(), data.switcher, ratio) for ratio in (0.3, 0.0))
    results = {}
    for name, work in {
        "trainer_ddp": lambda: by_trainer(data, output.parent / "ddp", switched),
        "accelerate_zero1": lambda: by_accelerate(data, plain, zero=1),
        "trainer_zero3": lambda: by_trainer(data, output.parent / "zero3", switched, zero=3),
    }.items():
        results |= {f"{name}.{key}": value.contiguous() for key, value in work().items()}
        AcceleratorState._reset_state(reset_partial_state=True)
    if torch.distributed.get_rank() == 0:
        save_file(results, output)


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()
