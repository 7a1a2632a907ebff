"""Generation from a causal language model, in batches, with noise that belongs to the sample.

What is drawn is a pure function of (model, seed, sample, position): batches and ranks change nothing but the rounding
of the logits.

Shape letters: N samples, B samples at once, P prompt tokens, G generated tokens, V ids in use.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prealign_ds.evaluation.compute import Compute, rank_and_world, sum_over_ranks
from prealign_ds.randomness import key_of, mix_array


@torch.no_grad()
def generate(
    compute: Compute,
    prompts_NP: np.ndarray,
    new_tokens: int,
    vocabulary: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
) -> np.ndarray:
    """Continue prompts of one length by sampling at temperature 1; all ranks must call it, and share the samples.

    Args:
        compute: Reaches the model, which is in evaluation mode.
        prompts_NP: Token ids.
        new_tokens: Tokens G to draw for each prompt; nothing ends a text earlier.
        vocabulary: Ids in use; the padding beyond is never drawn.
        batch_size: Samples that one rank generates at once.
        seed: Decides the draws.
        device: Where to put the batches.

    Returns:
        The drawn ids, int64 of shape (N, G).
    """
    rank, world = rank_and_world()
    number = len(prompts_NP)
    drawn_NG = torch.zeros(number, new_tokens, dtype=torch.int64, device=device)
    for batch in range(math.ceil(number / (batch_size * world))):
        # A rank without samples left repeats the last one: under ZeRO-3 its forwards are needed.
        places = (batch * world + rank) * batch_size + np.arange(batch_size)
        samples = np.minimum(places, number - 1)
        prompts_BP = torch.from_numpy(prompts_NP[samples].astype(np.int64)).to(device)
        noise_BG = torch.from_numpy(sampling_noise(seed, samples, new_tokens)).to(device)
        found_BG = compute(partial(_sample, prompts_BP=prompts_BP, noise_BG=noise_BG, vocabulary=vocabulary))
        drawn_NG[places[places < number]] = found_BG[: np.count_nonzero(places < number)]
    return sum_over_ranks(drawn_NG).cpu().numpy()


def sampling_noise(seed: int, samples: np.ndarray, new_tokens: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for each sample and position, float64 of shape (samples, new_tokens)."""
    keys = mix_array(samples.astype(np.uint64) ^ np.uint64(key_of("generation", seed)))
    bits = mix_array(keys[:, None] ^ np.arange(new_tokens, dtype=np.uint64))
    return (bits >> np.uint64(11)) * 2.0**-53


def _sample(model: PreTrainedModel, prompts_BP: Tensor, noise_BG: Tensor, vocabulary: int) -> Tensor:
    """Draw token after token by inverting the cumulative distribution."""
    past = None
    ids, drawn = prompts_BP, []
    for noise_B1 in noise_BG.split(1, dim=1):
        output = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = output.past_key_values
        assert past is not None, "put the model into evaluation mode: while it trains, recomputation keeps no cache"
        cumulative_BV = output.logits[:, -1, :vocabulary].double().softmax(-1).cumsum(-1)
        # Ends at exactly 1, above all noise; to the right of equal values, so that no id of probability 0 is drawn.
        ids = torch.searchsorted(cumulative_BV / cumulative_BV[:, -1:], noise_B1.contiguous(), right=True)
        drawn.append(ids)
    return torch.cat(drawn, 1)
