"""Models with known answers: functions from input ids to logits, called as evaluations call a model."""

from types import SimpleNamespace


def rigged(logits_of):
    """How evaluations compute with a model whose logits are ``logits_of(input_ids)``."""

    def model(input_ids, use_cache):
        return SimpleNamespace(logits=logits_of(input_ids))

    return lambda task: task(model)
