"""Where there is no GPU, megatron-core's own attention by PyTorch: Megatron takes its buffers from CUDA alone.

Python runs this before the programs of docs/own_trainer.md, so that all else of ``GPTModel`` runs as it is.
"""

import importlib.abc
import importlib.machinery
import sys

_MODULE = "megatron.core.transformer.dot_product_attention"


def attend(self, query, key, value, attention_mask, **_):
    """Causal attention; all of shape (T, B, heads, head size), the result (T, B, H)."""
    from torch.nn.functional import scaled_dot_product_attention

    heads = [states.permute(1, 2, 0, 3) for states in (query, key, value)]
    return scaled_dot_product_attention(*heads, is_causal=True).permute(2, 0, 1, 3).flatten(2)


class _Finder(importlib.abc.MetaPathFinder):
    """Replaces the forward of the attention when its module is imported."""

    def find_spec(self, name, path, target=None):
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def replace(module):
            execute(module)
            import torch

            if not torch.cuda.is_available():
                module.DotProductAttention.forward = attend

        spec.loader.exec_module = replace
        return spec


sys.meta_path.insert(0, _Finder())
