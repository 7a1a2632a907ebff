"""Models for others: a transformers folder with weights, tokenizer and model card, from any checkpoint of a run."""
