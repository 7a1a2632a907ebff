"""PreAlign-DS: multilingual alignment before and during pretraining, as a thin plugin for DeepSpeed.

The folders follow the method (arXiv 2407.16222) in one direction; a lower one never imports a later one:

1. ``corpus``      text in: documents, tokenizer, ``.bin/.idx`` token files, the En-Clone language
2. ``alignment``   the alignment table and stage 1: word batches, representations (Eq. 1), contrastive loss (Eq. 2-4)
3. ``codeswitch``  word spans and the input-only code-switcher (Eq. 5-6)
4. ``stream``      ``sample(k)``: shuffling, blending and switching as a pure function of the sample index
5. ``training``    model, DeepSpeed engine, loop, checkpoints
6. ``evaluation``  perplexity per language

``config`` describes a run, ``recipe`` reads it from YAML; ``launchers/`` and ``tools/`` only parse, build and call.
"""

__version__ = "0.1.0"
