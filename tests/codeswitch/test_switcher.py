"""The switcher: the paper's worked example, and a plain slow reference written from Eq. 5 and 6."""

from bisect import bisect_right
from collections import Counter

import numpy as np
import pytest
from conftest import Row, llama3_style, make_text
from hypothesis import given, settings
from hypothesis import strategies as st
from test_spans import reference_spans

from prealign_ds.alignment.counting import WordCount
from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.spans import WordFinder
from prealign_ds.codeswitch.switcher import IGNORED, CodeSwitcher
from prealign_ds.corpus.tokenizer import FragmentEncoder, token_bytes
from prealign_ds.randomness import mix
from prealign_ds.words import copy_case


def make_table(translations):
    pairs = [Pair(word, "de", text, "test") for word, texts in translations.items() for text in texts]
    return AlignmentTable.from_pairs(None, pairs)


def encode(tokenizer, text):
    return np.array(tokenizer.encode(text, add_special_tokens=False))


def slow_sentence_starts(pieces, tokens, start, length):
    """For each place of a sample, where its sentence begins, by looking at the pieces around each border."""
    begins, current = {}, start
    for place in range(start, start + length):
        if place > start:
            before, after = pieces[tokens[place - 1]], pieces[tokens[place]]
            ending = before
            if before is not None and not before.strip(b"\"'*_)]}") and place - 1 > start:
                ending = (pieces[tokens[place - 2]] or b"") + before
            closed = ending is not None and ending.rstrip(b"\"'*_)]}").endswith((b".", b"!", b"?", "…".encode()))
            spaced = after is None or after[:1].isspace() or b"\n" in after
            if before is None or b"\n" in before or (closed and spaced):
                current = place
        begins[place] = current
    return begins


def slow_switch(tokenizer, table, mode, tokens, start, length, ratio, key, unit="word"):
    """Eq. 5 and 6 word by word: lists, no vectors, spans from the decoded text."""
    pieces, fragments = token_bytes(tokenizer), FragmentEncoder(tokenizer)
    tokens = [int(token) for token in tokens]
    ends = dict(reference_spans(pieces, tokens))
    sentences = slow_sentence_starts(pieces, tokens, start, length)
    units, place = [], start  # (tokens in the input, original tokens, switched)
    while place < start + length:
        end = ends.get(place)
        replacement = None
        draw = mix((sentences[place] if unit == "sentence" else place) ^ key)
        if end is not None and end <= start + length and draw < ratio * 2**64:
            text = b"".join(pieces[t] for t in tokens[place:end]).decode()
            word = text.lstrip()
            index = table.lookup(word)
            if index is not None:
                choices = [
                    ids
                    for translation in table.translations(table.words[index])["de"]
                    for ids in fragments([text[: len(text) - len(word)] + copy_case(word, translation)])
                ]
                cumulative = np.cumsum([1 / len(choices)] * len(choices)).tolist()
                replacement = choices[bisect_right(cumulative[:-1], (draw & 0xFFFFFFFF) / 2**32)].tolist()
        if replacement:
            units.append((replacement, tokens[place:end], True))
            place = end
        else:
            units.append(([tokens[place]], [tokens[place]], False))
            place += 1
    inputs, targets = [], []
    for number, (shown, _, switched) in enumerate(units):
        following_original = units[number + 1][1][0] if number + 1 < len(units) else tokens[start + length]
        following_shown = units[number + 1][0][0] if number + 1 < len(units) else tokens[start + length]
        inputs += shown
        if mode == "vanilla":
            targets += [*shown[1:], following_shown]
        else:
            targets += [IGNORED] * (len(shown) - 1) + [following_original] if switched else [following_original]
    fill = start + length
    while len(inputs) < length:
        inputs.append(tokens[fill] if fill < len(tokens) else 0)
        targets.append(IGNORED)
        fill += 1
    return inputs[:length], targets[:length]


@pytest.mark.parametrize("mode", ["input_only", "vanilla"])
def test_worked_example_of_the_paper(mode):
    """He plays the piano well . with piano = [pi, ano] -> Klavier = [Kl, avier], token by token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<eos>", "Ċ", "ĠHe", "Ġplays", "Ġthe", "Ġpi", "ano", "Ġwell", "Ġ.", "ĠKl", "avier", "Ġmore"]
    letters = sorted(set("".join(vocabulary[2:])))
    ids = {token: place for place, token in enumerate([*vocabulary, *[x for x in letters if x not in vocabulary]])}
    merges = [(word[:cut], word[cut:]) for word in () for cut in ()]
    joined = {}
    for token in vocabulary[2:]:
        part = token[0]
        for character in token[1:]:
            merges.append((part, character))
            part += character
            joined[part] = None
    for part in joined:
        ids.setdefault(part, len(ids))
    backend = Tokenizer(models.BPE(vocab=ids, merges=list(dict.fromkeys(merges))))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    row = [ids[t] for t in ["ĠHe", "Ġplays", "Ġthe", "Ġpi", "ano", "Ġwell", "Ġ.", "Ġmore"]]
    switch = CodeSwitcher(make_table({"piano": ["Klavier"]}), tokenizer, mode)
    done = switch(Row(row), 0, 7, 1.0, 0)
    names = {place: token for token, place in ids.items()} | {IGNORED: "-"}
    assert [names[i] for i in done.input_ids] == ["ĠHe", "Ġplays", "Ġthe", "ĠKl", "avier", "Ġwell", "Ġ."]
    expected = {
        "input_only": ["Ġplays", "Ġthe", "Ġpi", "-", "Ġwell", "Ġ.", "Ġmore"],
        "vanilla": ["Ġplays", "Ġthe", "ĠKl", "avier", "Ġwell", "Ġ.", "Ġmore"],
    }
    assert [names[i] for i in done.targets] == expected[mode]
    assert done.num_switched == {"de": 1} and done.num_words == 6 and done.num_drawn == 6


_TRANSLATION = st.text(st.sampled_from("abKlvierüß你好"), min_size=1, max_size=9)
_SOURCE = st.sampled_from(
    ["the", "piano", "a", "plays", "don't", "house", ".", '"', "naïve", "old", "we", "river", "12"]
)


@settings(max_examples=150, deadline=None)
@given(
    translations=st.dictionaries(_SOURCE, st.lists(_TRANSLATION, min_size=1, max_size=3, unique=True), min_size=1),
    seed=st.integers(0, 30),
    start=st.integers(0, 60),
    length=st.integers(2, 50),
    ratio=st.sampled_from([0.05, 0.5, 1.0]),
    key=st.integers(0, 2**64 - 1),
    mode=st.sampled_from(["input_only", "vanilla"]),
    unit=st.sampled_from(["word", "sentence"]),
)
def test_switcher_agrees_with_the_equations(any_tokenizer, translations, seed, start, length, ratio, key, mode, unit):
    table = make_table(translations)
    text = encode(any_tokenizer, make_text(60, seed))
    tokens = np.array([*text[:50], any_tokenizer.eos_token_id, *text[50:]])
    if start + length + 1 > len(tokens):
        return
    done = CodeSwitcher(table, any_tokenizer, mode, unit=unit)(Row(tokens), start, length, ratio, key)
    inputs, targets = slow_switch(any_tokenizer, table, mode, tokens, start, length, ratio, key, unit)
    assert done.input_ids.tolist() == inputs
    assert done.targets.tolist() == targets


def test_targets_of_input_only_are_the_original_text_and_nothing_else(tokenizer):
    table = make_table({"the": ["Apfelbaumgarten"], "piano": ["x"], "house": ["Haus"]})
    tokens = encode(tokenizer, make_text(300))
    done = CodeSwitcher(table, tokenizer)(Row(tokens), 0, len(tokens) - 1, 1.0, 7)
    kept = done.targets[done.targets != IGNORED]
    original = iter(tokens[1:])
    assert all(target in original for target in kept)  # a subsequence, in order


def test_the_last_word_and_a_word_across_the_border(tokenizer):
    table = make_table({"the": ["Xx"]})
    tokens = encode(tokenizer, " a the piano the")
    (the,) = encode(tokenizer, " the")
    last = int(np.flatnonzero(tokens == the)[0])
    whole = CodeSwitcher(table, tokenizer)(Row(tokens), 0, last + 1, 1.0, 0)
    assert whole.num_switched == {"de": 1}, "a word that ends with the sample is switched"
    assert whole.input_ids[last] != the
    cut = CodeSwitcher(make_table({"piano": ["Xx"]}), tokenizer)
    pi = encode(tokenizer, " piano")
    if len(pi) > 1:
        assert cut(Row(tokens), 0, last + 2, 1.0, 0).num_switched == {}, "a word across the border is not"


def test_a_word_with_an_apostrophe_is_switched_inside_the_border_alone(tokenizer):
    table = make_table({"l'eau": ["Xx"]})
    tokens = encode(tokenizer, " a l'eau we we")
    ends = [n for n in range(len(tokens)) if tokenizer.decode(tokens[:n]) in (" a l", " a l'", " a l'eau")]
    assert len(ends) == 3, "three tokens, and words could begin at each"
    for length in range(1, len(tokens)):
        done = CodeSwitcher(table, tokenizer)(Row(tokens), 0, length, 1.0, 0)
        assert sum(done.num_switched.values()) == (length >= ends[-1])


def test_a_language_whose_translations_cannot_be_spelled_leaves_the_draw():
    tokenizer = llama3_style()  # joins the line break to the one before it
    pairs = [Pair("the", "de", "\nx", "t"), Pair("the", "ru", "это", "t")]
    switch = CodeSwitcher(AlignmentTable.from_pairs(None, pairs), tokenizer)
    assert switch(Row(encode(tokenizer, "the a a")), 0, 2, 1.0, 0).num_switched == {"ru": 1}


def test_adjacent_switches_line_starts_and_quotes(tokenizer):
    table = make_table({"the": ["Das"], "house": ["Haus"]})
    tokens = encode(tokenizer, 'The house\nthe "house" .' + " a" * 20)
    done = CodeSwitcher(table, tokenizer)(Row(tokens), 0, len(tokens) - 1, 1.0, 3)
    assert done.num_switched == {"de": 4}
    assert tokenizer.decode(done.input_ids).startswith('Das Haus\nDas "Haus" ')


def test_case_and_space_are_kept_and_german_nouns_keep_their_capital(tokenizer):
    table = make_table({"piano": ["Klavier"], "well": ["gut"]})
    tokens = encode(tokenizer, "piano Well  WELL well" + " a" * 20)
    done = CodeSwitcher(table, tokenizer)(Row(tokens), 0, len(tokens) - 1, 1.0, 3)
    assert tokenizer.decode(done.input_ids).startswith("Klavier Gut  GUT gut")


def test_draws_do_not_depend_on_the_window(tokenizer):
    table = make_table({word: ["Xx"] for word in "the we a river piano he plays house music old".split()})
    row = Row(encode(tokenizer, make_text(900)))
    switch = CodeSwitcher(table, tokenizer)

    def switched_offsets(start, length):
        done = switch(row, start, length, 0.5, 99)
        return sum(done.num_switched.values())

    whole = switched_offsets(0, 960)
    assert whole > 20
    assert sum(switched_offsets(start, 40) for start in range(0, 960, 40)) == pytest.approx(
        whole, abs=10
    )  # words across a border are not switched


def test_realised_rate_and_language_shares(tokenizer):
    pairs = [Pair("the", "de", "das", "t"), Pair("the", "ru", "это", "t"), Pair("a", "de", "eins", "t")]
    table = AlignmentTable.from_pairs({"the": WordCount(10, 10), "a": WordCount(10, 10)}, pairs)
    tokens = np.tile(encode(tokenizer, " the a"), 20_000)
    done = CodeSwitcher(table, tokenizer, "input_only", {"de": 1, "ru": 3})(Row(tokens), 0, len(tokens) - 2, 0.05, 5)
    assert sum(done.num_switched.values()) == pytest.approx(0.05 * 40_000, rel=0.08)
    # "a" has German alone; "the" is German in one of four cases
    assert done.num_switched["ru"] == pytest.approx(0.05 * 20_000 * 0.75, rel=0.1)


def test_clone_words_are_the_source_tokens_plus_the_vocabulary(tokenizer):
    table = AlignmentTable.clone(Counter_counts("the house . don't"), minimum_count=1)
    tokens = encode(tokenizer, " the house don't.")
    done = CodeSwitcher(table, tokenizer)(Row([*tokens, 0]), 0, len(tokens), 1.0, 0)
    assert done.input_ids.tolist() == (tokens + len(tokenizer)).tolist()
    assert done.num_switched == {"clone": 4}


def Counter_counts(text):
    return {word: WordCount(number, number) for word, number in Counter(text.split()).items()}


def test_unknown_language_weights_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"code-switch weight fr: 1.0: .*\['de'\]"):
        CodeSwitcher(make_table({"a": ["b"]}), tokenizer, "input_only", {"fr": 1.0})


def test_ratios_by_language_leave_a_word_as_it_is_where_the_language_lacks_it(tokenizer):
    pairs = [Pair("the", "de", "das", "t"), Pair("the", "ru", "это", "t"), Pair("a", "de", "eins", "t")]
    table = AlignmentTable.from_pairs({"the": WordCount(10, 10), "a": WordCount(10, 10)}, pairs)
    tokens = np.tile(encode(tokenizer, " the a"), 20_000)
    ratios = {"de": 0.02, "ru": 0.06}
    switch = CodeSwitcher(table, tokenizer, "input_only", ratios, fixed_shares=True)
    done = switch(Row(tokens), 0, len(tokens) - 2, 0.08, 5)
    assert done.num_switched["de"] / done.num_words == pytest.approx(0.02, rel=0.1)
    assert done.num_switched["ru"] / done.num_words == pytest.approx(0.03, rel=0.1), "half of the words have none"
    assert done.num_drawn / done.num_words == pytest.approx(0.08, rel=0.05)


def test_a_sentence_is_switched_as_a_whole_and_in_one_language(tokenizer):
    pairs = [Pair(word, language, language.upper(), "t") for word in ("the", "we") for language in ("de", "ru")]
    pairs.append(Pair("house", "de", "DE", "t"))
    table = AlignmentTable.from_pairs({word: WordCount(9, 9) for word in ("the", "we", "house")}, pairs)
    switch = CodeSwitcher(table, tokenizer, "input_only", {"de": 1, "ru": 3}, unit="sentence")
    tokens = encode(tokenizer, " we the house house." * 4000)
    done = switch(Row(tokens), 0, len(tokens) - 1, 0.2, 11)
    sentences = tokenizer.decode(done.input_ids).split(".")[:-1]
    assert {tuple(sentence.split()) for sentence in sentences} == {
        ("we", "the", "house", "house"),
        ("DE", "DE", "DE", "DE"),
        ("RU", "RU", "house", "house"),  # what the language of the sentence lacks stays as it is
    }
    assert done.num_drawn / done.num_words == pytest.approx(0.2, rel=0.1)
    assert done.num_switched["ru"] / done.num_words == pytest.approx(0.2 * 0.75 * 2 / 5, rel=0.1), (
        "the full stop is one of five"
    )


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("We play. He does! She (we all know.) is here", ["We play.", "He does!", "She (we all know.)", "is here"]),
        ("It is 3.14 or U.S.A now\nThe house", ["It is 3.14 or U.S.A now\n", "The house"]),
        ('Really?" he plays', ['Really?"', "he plays"]),
    ],
)
def test_where_sentences_begin(any_tokenizer, text, sentences):
    tokens = encode(any_tokenizer, text)
    finder = WordFinder(token_bytes(any_tokenizer))
    begins = np.flatnonzero(finder.sentence_starts(tokens)).tolist()
    pieces = [finder.text(tokens[a:b]) for a, b in zip(begins, [*begins[1:], len(tokens)], strict=True)]
    assert [piece.strip() for piece in pieces if piece.strip()] == [sentence.strip() for sentence in sentences]


def test_chinese_marks_end_a_sentence_without_a_space():
    finder = WordFinder([text.encode() for text in ("你好", "。", "！」", "再见")] + [None])
    assert finder.sentence_starts(np.array([0, 1, 3, 2, 0, 4, 3])).tolist() == [1, 0, 1, 0, 1, 0, 1]
