"""The alignment-init stage: L_joint = L_align + L_LM in one forward and one backward (paper Eq. 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import deepspeed
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prealign_ds.alignment.batches import WordBatch, WordBatches
from prealign_ds.alignment.conflict import GradientComparison
from prealign_ds.alignment.loss import layer_alignments
from prealign_ds.alignment.representations import word_representations
from prealign_ds.alignment.rows import TableRows
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import AlignSettings
from prealign_ds.model import lm_loss_sum, lm_loss_sum_of_states


class AlignmentStage:
    """Word batches and the alignment loss for any transformers causal language model and any engine.

    Args:
        table: The alignment table.
        tokenizer: The tokenizer of the model.
        settings: The ``align`` section.
        seed: Decides the word batches.
    """

    def __init__(self, table: AlignmentTable, tokenizer: PreTrainedTokenizerFast, settings: AlignSettings, seed: int):
        self.settings = settings
        self.rows = TableRows(table, tokenizer, settings.positives)
        self._batches = WordBatches(
            self.rows, settings.words_per_step, settings.translations_per_language, seed, settings.language_weights
        )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> WordBatch:
        """The words of step ``step`` that rank ``rank`` of ``world`` encodes; a pure function of its arguments."""
        return self._batches.batch(step, rank, world)

    def largest_batch(self, rank: int = 0, world: int = 1) -> WordBatch:
        """A batch of the longest words, which needs as much memory as any."""
        return self._batches.largest(rank, world)

    def visits(self, steps: int) -> float:
        """How often each word of W is seen in ``steps`` steps; 10 or more are advised."""
        return steps * self.settings.words_per_step / len(self.rows.trained_words)

    def loss(self, model: PreTrainedModel, batch: WordBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_align (Eq. 3), scaled so that the average over ranks of its gradients is the global gradient.

        Each rank returns world x (sum over its anchors) / (anchors of the global batch), summed over the layers.

        Args:
            model: The model, inside the forward of a :class:`JointModel` where ZeRO-3 is in use.
            batch: This rank's share of the word batch, on the model's device.

        Returns:
            The loss, and the log: tensors of shape (layers,) whose sum over ranks is ``alignment_loss``,
            ``aligned_cosine`` and ``random_cosine`` of each layer.
        """
        states = word_representations(model, batch)
        weights = self.layer_weights(len(states))
        world, rows = len(batch.counts), sum(batch.counts)
        scale = world / batch.num_anchors
        found = layer_alignments([states[layer] for layer in weights], batch, self.settings.temperature)
        losses = found.losses_L * scale
        others = max(1, rows * (rows - 1) - batch.num_positives)
        log = {
            "alignment_loss": losses.detach() / world,
            "aligned_cosine": found.positive_cosines_L / batch.num_positives,
            "random_cosine": found.other_cosines_L / others,
        }
        return self.settings.weight * (losses * losses.new_tensor(list(weights.values()))).sum(), log

    def layer_weights(self, total: int) -> dict[int, float]:
        """The layers that take part, of 0 .. L+1 in this order, and what the loss of each is multiplied by.

        Raises:
            ValueError: If ``align.layers`` names a layer that the model does not have.
        """
        layers = range(total) if self.settings.layers == "all" else self.settings.layers
        weights = dict(layers) if isinstance(layers, dict) else dict.fromkeys(layers, 1.0)
        if wrong := [layer for layer in weights if not 0 <= layer < total]:
            raise ValueError(f"align.layers: {wrong} are not layers of the model, which has 0 to {total - 1}")
        return dict(sorted(weights.items()))


class JointModel(nn.Module):
    """A causal language model that computes both losses inside one forward.

    One forward, because under ZeRO-3 a parameter is whole only inside the forward of the module that owns it, and
    because several backward passes a step lose gradients under ZeRO-1 and 2.

    Args:
        model: A transformers causal language model; save its weights from here, without the wrapper's name.
        vocabulary: Ids in use; the padding beyond gets no probability.
        stage: The alignment stage, or None for language modelling alone.
        lm_loss: The implementation, see :class:`prealign_ds.config.KernelSettings`.
    """

    def __init__(
        self, model: PreTrainedModel, vocabulary: int, stage: AlignmentStage | None = None, lm_loss: str = "plain"
    ):
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.stage = stage
        self.lm_loss = lm_loss
        self._loss_of_logits = torch.compile(lm_loss_sum, dynamic=False) if lm_loss == "compiled" else lm_loss_sum
        deepspeed.zero.register_external_parameter(self, model.get_output_embeddings().weight)

    def forward(
        self,
        input_ids: Tensor | None = None,
        targets: Tensor | None = None,
        loss_scale: float = 1.0,
        words: WordBatch | None = None,
        words_scale: float = 1.0,
        comparison: GradientComparison | None = None,
        task: Callable[[PreTrainedModel], Any] | None = None,
    ) -> Any:
        """L_LM, plus L_align if ``words`` are given; or ``task``.

        Args:
            input_ids: int64 of shape (B, S).
            targets: int64 of shape (B, S), already shifted; -100 is ignored.
            loss_scale: Constant that the summed LM loss is multiplied by: ranks and accumulation steps over tokens of
                the global batch, so that ranks with more ignored targets weigh right.
            words: This rank's share of the word batch; once an optimizer step, not once a micro-step.
            words_scale: Multiplies L_align; the number of accumulation steps undoes the engine's average over them.
            comparison: Gets the gradients of both losses.
            task: Anything else to compute with the model, an evaluation for example, in here because of ZeRO-3; all
                ranks must pass one that runs the same modules in the same order.

        Returns:
            The loss, and a log of detached tensors: ``lm_loss_sum``, ``num_targets`` and what the stage logs. With a
            ``task``, what it returns.
        """
        if task is not None:
            return task(self.model)
        assert input_ids is not None and targets is not None
        lm_loss = self._lm_loss(input_ids, targets)
        log = {"lm_loss_sum": lm_loss.detach(), "num_targets": (targets != -100).sum()}
        loss = lm_loss * loss_scale
        if comparison is not None:
            comparison.add("lm", loss)
        if words is not None and self.stage is not None:
            alignment, alignment_log = self.stage.loss(self.model, words)
            alignment = alignment * words_scale
            log |= alignment_log
            if comparison is not None:
                comparison.add("alignment", alignment)
            loss = loss + alignment
        return loss, log

    def _lm_loss(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        if self.lm_loss in ("plain", "compiled"):
            logits = self.model(input_ids=input_ids, use_cache=False).logits
            return self._loss_of_logits(logits, targets, self.vocabulary)
        states = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        weight = cast(Tensor, self.model.get_output_embeddings().weight)
        return lm_loss_sum_of_states(states, weight, targets, self.vocabulary, self.lm_loss)
