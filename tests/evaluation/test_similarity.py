"""Similarity and retrieval with known answers: perfect alignment, chance, and a slow CSLS."""

import numpy as np
import pytest
import torch

from prealign_ds.alignment.counting import WordCount
from prealign_ds.alignment.rows import TableRows
from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import ModelSettings, SimilaritySettings
from prealign_ds.corpus.clone import clone_ids
from prealign_ds.evaluation import similarity as module
from prealign_ds.evaluation.similarity import WordSimilarity, csls_nearest
from prealign_ds.model import align_perfectly, build_model, model_config

WORDS = [first + second for first in "bdfgklmn" for second in "a e i o u ar ill ond".split()]


def clone_model(tokenizer, perfect, architecture="gpt2"):
    settings = ModelSettings(
        architecture=architecture, num_layers=2, hidden_size=32, num_heads=2, tied_embeddings=False
    )
    model = build_model(model_config(settings, 32, 2 * len(tokenizer), tokenizer), settings, seed=3).eval()
    if perfect:
        align_perfectly(model, torch.from_numpy(clone_ids(tokenizer)))
    return model


def clone_table(held_out=0.3):
    counts = {word: WordCount(9 - place % 5, 8 - place % 5) for place, word in enumerate(WORDS)}
    return AlignmentTable.clone(counts).hold_out(held_out, seed=1)


def measure(table, tokenizer, model, seed=0, **settings):
    probe = WordSimilarity(table, TableRows(table, tokenizer), SimilaritySettings(**settings), seed)
    return probe.measure(lambda task: task(model), "cpu")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_perfect_alignment_has_cosine_one_and_finds_every_word(tokenizer, architecture):
    found = measure(clone_table(), tokenizer, clone_model(tokenizer, True, architecture), batch_size=7)["clone"]
    for split in found.values():
        assert split["cosine"] == pytest.approx([1.0] * 4, abs=1e-5)
        assert max(split["random"]) < 0.99
        assert split["p_at_1"] == {"to_target": [1.0] * 4, "to_source": [1.0] * 4}
        assert split["n"]["to_target"] == split["n"]["to_source"] == split["n"]["pairs"]
        assert split["candidates"] == {"to_target": 128, "to_source": 128}, "with and without a space"
    assert found["held_in"]["n"]["words"] + found["held_out"]["n"]["words"] == 64


def test_a_random_model_is_near_chance(tokenizer):
    found = measure(clone_table(), tokenizer, clone_model(tokenizer, False))["clone"]["held_in"]
    assert abs(found["cosine"][0] - found["random"][0]) < 0.1, "clone embeddings are drawn independently"
    assert max(*found["p_at_1"]["to_target"], *found["p_at_1"]["to_source"]) < 0.25


def test_random_pairs_are_all_that_are_no_translations(tokenizer):
    table = AlignmentTable.from_pairs(None, [Pair(w, "de", w[::-1].title(), "t") for w in ("ba", "do", "fi", "gu")])
    model = clone_model(tokenizer, False)
    found = measure(table, tokenizer, model)["de"]
    assert found["held_out"] is None
    weights = model.get_input_embeddings().weight.detach()

    def embedded(word):
        mean = weights[tokenizer.encode(word)].mean(0)
        return mean / mean.norm()

    cosines = np.array(
        [[float(embedded(" " + a) @ embedded(" " + b[::-1].title())) for b in table.words] for a in table.words]
    )
    off_diagonal = (cosines.sum() - np.trace(cosines)) / 12
    assert found["held_in"]["cosine"][0] == pytest.approx(np.trace(cosines) / 4, abs=1e-6)
    assert found["held_in"]["random"][0] == pytest.approx(off_diagonal, abs=1e-6)


def slow_csls(queries, candidates, query_rows, candidate_rows, k):
    """The formula of the paper, word by word."""

    def cosine(a, b, same):
        return -1.0 if same else float(a @ b)

    def crowding(one, row, others, rows):
        near = sorted((cosine(one, other, row == r) for other, r in zip(others, rows, strict=True)), reverse=True)
        return sum(near[:k]) / len(near[:k])

    best = []
    for query, row in zip(queries, query_rows, strict=True):
        scores = [
            2 * cosine(query, candidate, row == r)
            - crowding(query, row, candidates, candidate_rows)
            - crowding(candidate, r, queries, query_rows)
            for candidate, r in zip(candidates, candidate_rows, strict=True)
        ]
        best.append(int(np.argmax(scores)))
    return best


@pytest.mark.parametrize("k", [1, 3, 10])
def test_csls_agrees_with_a_slow_reference(monkeypatch, k):
    generator = torch.Generator().manual_seed(k)
    queries, candidates = (
        torch.nn.functional.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64) + 0.5, dim=1)
        for n in (17, 23)
    )
    queries[4] = candidates[7]
    rows, other_rows = torch.arange(17), torch.arange(23) + 100
    rows[4] = other_rows[7]
    expected = slow_csls(queries, candidates, rows, other_rows, k)
    assert expected[4] != 7, "a word is not its own translation"
    assert expected != (queries @ candidates.T).argmax(1).tolist(), "crowded candidates lose"
    for elements in (1, 50, 2**22):
        monkeypatch.setattr(module, "_ELEMENTS", elements)
        assert csls_nearest(queries, candidates, rows, other_rows, k).tolist() == expected


def test_any_translation_counts_and_held_out_queries_have_no_trained_pair(tokenizer):
    pairs = [Pair("bank", "de", "U", "t"), Pair("shore", "de", "U", "t"), Pair("bank", "de", "B", "t")]
    pairs += [Pair("tree", "de", "K", "t")]
    table = AlignmentTable.from_pairs(None, pairs)
    held_out = np.array([table.words[word] in ("shore", "tree") for word in table.edge_word])
    table.edge_held_out[:] = held_out
    rows = TableRows(table, tokenizer)
    sample = WordSimilarity(table, rows, SimilaritySettings(), 0)._samples["de"]
    trained, kept_out = sample.splits["held_in"], sample.splits["held_out"]
    assert [len(q) for q in trained.queries] == [1, 2] and [len(q) for q in kept_out.queries] == [2, 1]
    assert trained.num_words == 1 and len(trained.pairs_P[0]) == 2 and len(kept_out.pairs_P[0]) == 2

    # bank is nearest to B, its second translation; U is nearest to shore; tree finds U and K finds tree.
    directions = {
        "bank": (1, 0.1, 0),
        "B": (1, 0, 0),
        "shore": (0, 1, 0),
        "U": (0, 1, 0.1),
        "tree": (0, 0.9, 0.3),
        "K": (0, 0, -1),
    }
    states = {rows._known[np.array(tokenizer.encode(" " + word)).tobytes()]: v for word, v in directions.items()}
    order = torch.cat([sample.source_rows_S, sample.target_rows_T]).tolist()
    figures = module._figures(sample, torch.tensor([states[row] for row in order]), 1)
    assert figures[2:4] == [1.0, 1.0] and figures[6] == 0.5


def test_the_sample_is_seeded_and_does_not_depend_on_the_language(tokenizer):
    pairs = [Pair(word, language, word[::-1] + "x", "t") for word in WORDS for language in ("de", "fr")]
    table = AlignmentTable.from_pairs(None, pairs)
    rows = TableRows(table, tokenizer)

    def drawn(seed):
        samples = WordSimilarity(table, rows, SimilaritySettings(words=10), seed)._samples
        return [samples[language].source_rows_S.tolist() for language in ("de", "fr")]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1)[0] == drawn(1)[1] and len(drawn(1)[0]) == 10
