"""Text in: documents, splits, tokenizer, Megatron token files, and the En-Clone language."""
