"""Shared fixtures: small tokenizers of the three common kinds, and text to train them on."""

import json
import os
import random
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

REPOSITORY = Path(__file__).resolve().parent.parent

_WORDS = (
    "the piano a well he plays she doesn't don't it's we're house street light old river bank music quiet naïve café "
    "garden window l'eau winter summer people society freedom 1984 12 3 U S tree green don can't"
).split()
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_text(num_words: int, seed: int = 0) -> str:
    """English-looking text with quotes, line starts, contractions, digits and letters outside ASCII."""
    rng = random.Random(seed)
    parts = []
    for _ in range(num_words):
        word = rng.choice(_WORDS)
        if rng.random() < 0.2:
            word = word.capitalize()
        if rng.random() < 0.05:
            word = rng.choice(['"{}"', "'{}'", "({})", "“{}”", "{}-{}"]).format(word, rng.choice(_WORDS))
        parts.append(word + rng.choice([" "] * 12 + [". ", ", ", "; ", ".\n", "\n\n", "  ", "! ", "—"]))
    return "".join(parts)


LABELS = ("music", "river")
_FILLING = "the a well he plays she house street light old people green".split()


def write_labelled(path, number, seed, noise=0.0, names=LABELS):
    """Each text holds ``piano`` or ``river`` among other words, and is labelled by it, but for a share of them."""
    rng = random.Random(seed)
    lines = []
    for _ in range(number):
        label = rng.randrange(2)
        words = rng.choices(_FILLING, k=rng.randint(3, 8))
        words.insert(rng.randrange(len(words)), ("piano", "river")[label])
        lines.append(f"{names[label ^ (rng.random() < noise)]}\t{' '.join(words)}.\n")
    path.write_text("".join(lines))
    return str(path)


class Row:
    """Tokens in memory, read as a corpus is."""

    def __init__(self, tokens):
        self.tokens = np.asarray(tokens)
        self.num_tokens = len(self.tokens)

    def read(self, start, count):
        return self.tokens[start : start + max(0, count)]


def byte_level(pre_tokenizer, end_of_text: str, vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([make_text(4000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end_of_text)


def gpt2_style(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), "<|endoftext|>", vocab_size)


def llama3_style(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(pre_tokenizers.Sequence([split, to_bytes]), "<|end_of_text|>", vocab_size)


def sentencepiece_style(vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """Llama-2-like: a space is ▁, one is put before the text, bytes fall back to <0xNN>."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator([make_text(4000).replace("\n", " ")], trainer)
    description = json.loads(tokenizer.to_str())  # the byte tokens are ordinary ones, as in Llama 2's vocabulary
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] not in byte_tokens]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


STYLES = {"gpt2": gpt2_style, "llama3": llama3_style, "sentencepiece": sentencepiece_style}


@pytest.fixture(scope="session", params=list(STYLES))
def any_tokenizer(request) -> PreTrainedTokenizerFast:
    return STYLES[request.param]()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return gpt2_style()
