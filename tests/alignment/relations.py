"""Random word batches given as a matrix of relations, and Eq. 2 on whole matrices by autograd."""

import torch
from hypothesis import strategies as st
from torch.nn import functional

from prealign_ds.alignment.batches import WordBatch

NEGATIVE, POSITIVE, EXCLUDED = 0, 1, 2


def share_of(relations_RR, counts, rank=0):
    """The share of a rank in the word batch with these relations."""
    first, rows = sum(counts[:rank]), counts[rank]
    number_R = (relations_RR == POSITIVE).sum(1)
    own_rR = relations_RR[first : first + rows]
    return WordBatch(
        input_ids_rT=torch.zeros(rows, 1, dtype=torch.int64),
        mask_rT=torch.ones(rows, 1, dtype=torch.int64),
        groups=[(0, rows, 1)],
        counts=counts,
        positives=torch.nonzero(own_rR == POSITIVE, as_tuple=True),
        num_positives_R=number_R,
        excluded=torch.nonzero(own_rR == EXCLUDED, as_tuple=True),
        num_anchors=int((number_R > 0).sum()),
        num_positives=int(number_R.sum()),
    )


def dense_losses(states_LRH, relations_RR, temperature):
    """Eq. 2, summed over the anchors that have a positive, for each layer; the whole (R x R) matrix at once."""
    units_LRH = functional.normalize(states_LRH, dim=-1)
    logits_LRR = units_LRH @ units_LRH.mT / temperature
    log_shares_LRR = logits_LRR.masked_fill(relations_RR == EXCLUDED, -torch.inf).log_softmax(2)
    positive_RR = relations_RR == POSITIVE
    weights_RR = positive_RR / positive_RR.sum(1, keepdim=True).clamp_min(1).to(states_LRH.dtype)
    return -(log_shares_LRR.masked_fill(~positive_RR, 0.0) * weights_RR).sum((1, 2))


def steepness(gradient_LRH, states_LRH, temperature):
    """The gradient with regard to logits: what is left when the rows' lengths and the temperature are taken out."""
    return gradient_LRH * states_LRH.norm(dim=-1, keepdim=True) * temperature


@st.composite
def cases(draw, world=1):
    """(states in fp64, relations, counts of the ranks, temperature, elements of an intermediate tensor)."""
    counts = draw(st.lists(st.integers(1, 9), min_size=world, max_size=world))
    rows, hidden, layers = sum(counts), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shares = torch.tensor([1.0, *(draw(st.sampled_from([0.0, 0.1, 0.5, 3.0])) for _ in range(2))])
    upper = torch.multinomial(shares, rows * rows, replacement=True, generator=generator).view(rows, rows).triu(1)
    relations = upper + upper.T + EXCLUDED * torch.eye(rows, dtype=torch.int64)
    states = torch.randn(layers, rows, hidden, generator=generator, dtype=torch.float64)
    states *= draw(st.sampled_from([1e-4, 1.0, 1e4]))
    elements = draw(st.sampled_from([1, 2 * rows, 12 * rows * max(rows, hidden), 2**22]))
    return states, relations, counts, draw(st.sampled_from([0.01, 0.05, 0.1, 1.0])), elements
