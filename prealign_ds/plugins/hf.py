"""The alignment loss inside Hugging Face's ``Trainer``, and in any loop around a transformers model.

The model stays what it is, so that its weights are saved under their own names: only its forward takes a word batch
more. In the forward, because under ZeRO-3 a parameter is whole only there; see :class:`JointModel`.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from prealign_ds.alignment.batches import WordBatch
from prealign_ds.alignment.stage import AlignmentStage


def align_in_forward(model: PreTrainedModel, stage: AlignmentStage) -> None:
    """Let ``model(..., words=stage.batch(step, rank, world))`` compute L_align (Eq. 3) beside what it computes anyway.

    It then returns a dictionary: its outputs; ``alignment_loss``, which the average over ranks of gradients makes the
    global loss's; ``alignment_log``, see :meth:`AlignmentStage.loss`. Add the loss to that of one micro-batch of each
    optimizer step, times the accumulation steps wherever the trainer divides by them, and call backward on the sum:
    several backward passes lose gradients under ZeRO-1 and 2. Without ``words`` the model is as before.

    Args:
        model: A causal language model, before an engine, ``accelerate`` or DDP wraps it.
        stage: The alignment stage.
    """
    plain = model.forward

    @functools.wraps(plain)
    def forward(*args: Any, words: WordBatch | None = None, **kwargs: Any) -> Any:
        outputs = plain(*args, **kwargs)
        if words is None:
            return outputs
        loss, log = stage.loss(model, words)
        return {**outputs, "alignment_loss": loss, "alignment_log": log}  # DDP rebuilds transformers' classes by name

    model.forward = forward
    deepspeed.zero.register_external_parameter(model, model.get_output_embeddings().weight)


class AlignmentTrainer(Trainer):
    """Stage 1 in Hugging Face's Trainer: L_LM + L_align (Eq. 4), once an optimizer step at full weight.

    The word batch is that of ``state.global_step``, whole over the ranks, whatever the accumulation; a resumed run goes
    on with the next. L_LM is Trainer's own: the mean over the targets of the global batch. The log has
    ``alignment_loss``, ``aligned_cosine`` and ``random_cosine`` (the mean over layers), averaged since the last line;
    ``loss`` is the sum of both losses.

    Args:
        stage: The alignment stage.
        *args: Trainer's.
        **kwargs: Trainer's.

    Raises:
        ValueError: If one process drives several GPUs, or ranks share a batch (tensor, context, sequence parallelism).
    """

    def __init__(self, *args: Any, stage: AlignmentStage, **kwargs: Any):
        super().__init__(*args, **kwargs)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if self.args.n_gpu > 1 or getattr(parallelism, "non_data_parallel_size", 1) > 1:
            raise ValueError(
                f"AlignmentTrainer: {self.args.n_gpu} GPUs in one process, parallelism_config {parallelism}: ranks "
                "must be data-parallel; start one process a GPU (deepspeed, accelerate launch, torchrun)"
            )
        self.stage = stage
        self._aligned_step = -1
        self._word_logs: list[dict[str, Tensor]] = []
        align_in_forward(cast(PreTrainedModel, self.model), stage)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's loss; in the first micro-batch of a step with the alignment loss."""
        step = self.state.global_step
        if not model.training or step == self._aligned_step:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._aligned_step = step
        words = self.stage.batch(step, self.args.process_index, self.args.world_size).to(self.args.device)
        loss, outputs = super().compute_loss(model, inputs | {"words": words}, True, num_items_in_batch)
        self._word_logs.append(outputs["alignment_log"])
        loss = loss + outputs["alignment_loss"] * self._divisor(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _divisor(self, num_items_in_batch: Any) -> int:
        """What Trainer divides a micro-batch's loss by after ``compute_loss``; see its ``training_step``."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = counted or self.compute_loss_func is not None
        return 1 if scaled else self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's log, with the alignment's figures; all ranks call it."""
        if "loss" in logs and self._word_logs:
            names = ("alignment_loss", "aligned_cosine", "random_cosine")
            sums_3L = sum(torch.stack([log[name].float() for name in names]) for log in self._word_logs)
            means_3L = self.accelerator.reduce(sums_3L, "sum") / len(self._word_logs)
            means = [float(means_3L[0].sum()), *means_3L[1:].mean(1).tolist()]
            logs |= dict(zip(names, means, strict=True))
            self._word_logs = []
        super().log(logs, *args, **kwargs)
