"""Small data as the tools would leave it, and models of a second, for the tests of other people's trainers."""

import hashlib
import os
import random
from pathlib import Path

import torch
from building import write_tokens
from conftest import gpt2_style, make_text
from transformers import AutoConfig, AutoModelForCausalLM

from prealign_ds.alignment.counting import count_words
from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.stage import AlignmentStage
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.switcher import CodeSwitcher
from prealign_ds.config import AlignSettings
from prealign_ds.corpus.tokenizer import load_tokenizer
from prealign_ds.corpus.tokens import CorpusTokens


def build_plug_data(folder: Path, documents=24, words=400) -> Path:
    """``folder`` gets tokenizer/, text.bin, text.idx and table.parquet, whose translations are of any length."""
    gpt2_style().save_pretrained(folder / "tokenizer")
    texts = [make_text(words, seed) for seed in range(documents)]
    write_tokens(folder / "text", load_tokenizer(folder / "tokenizer"), texts)
    made_up_table(texts).save(folder / "table.parquet")
    return folder


def made_up_table(texts) -> AlignmentTable:
    """One or two translations of each word: some of one token, some of many."""
    counts, rng = count_words(texts, workers=1), random.Random(0)
    words = sorted(word for word in counts if word[0].isalpha())
    others = rng.sample(words, len(words))  # of one or two tokens each, as the words themselves
    pairs = [Pair(word, "de", other, "test") for word, other in zip(words, others, strict=True) if word != other]
    pairs += [Pair(word, "ru", word[::-1] + "ch", "test") for word in words[::2]]
    return AlignmentTable.from_pairs(counts, pairs)


class Data:
    """What lies in a folder of :func:`build_plug_data`, opened."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.table = AlignmentTable.load(folder / "table.parquet")
        self.tokens = CorpusTokens(folder / "text")
        self.switcher = CodeSwitcher(self.table, self.tokenizer)

    def stage(self, **settings):
        return AlignmentStage(self.table, self.tokenizer, AlignSettings(words_per_step=12, **settings), seed=3)

    def counts(self):
        return count_words([self.tokenizer.decode(self.tokens.read(0, self.tokens.num_tokens).tolist())], workers=1)

    def rows(self, length=24, number=40):
        return [self.tokens.read(place * length, length) for place in range(number)]


def tiny_model(data: Data, tied=False):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(data.tokenizer), n_layer=2, n_embd=32, n_head=2, n_positions=64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=tied, use_cache=False,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def digest(items) -> str:
    """A hash of rows of a data loader, in their order."""
    found = hashlib.sha256()
    for item in items:
        for name in sorted(item):
            found.update(torch.as_tensor(item[name]).numpy().tobytes())
    return found.hexdigest()


def one_thread():
    """Two cores are few; workers of a data loader inherit it."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
