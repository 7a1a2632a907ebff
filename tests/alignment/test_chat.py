"""The chat model as a source, against a local endpoint that misbehaves in every way that was thought of."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from chat_server import TROUBLES, ChatServer, translation
from conftest import REPOSITORY

from prealign_ds.alignment import chat
from prealign_ds.alignment.chat import AnswerCache, ask, batches_of, checked, estimate, words_without
from prealign_ds.alignment.counting import WordCount
from prealign_ds.alignment.endpoint import ChatSettings, Retry, _json_in, _retry_after
from prealign_ds.alignment.sources import Pair

WORDS = {f"word{number}": ("de", "ru") for number in range(300)}
KEY = "sk-do-not-tell"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(chat, "_back_off", lambda attempt: 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def settings(server, **changes):
    values = {"url": server.url, "model": "m", "languages": ["de", "ru"], "timeout": 0.4, "words_per_request": 20}
    return ChatSettings(**(values | changes))


def asked(tmp_path, server, wanted=WORDS, **changes):
    chosen = settings(server, **changes)
    cache = AnswerCache(tmp_path / "answers.jsonl", chosen)
    try:
        return ask(wanted, "en", chosen, cache)
    finally:
        cache.close()


def assert_all_there(answers, words=WORDS):
    found = {(pair.word, pair.language): pair.translation for pair in answers.pairs}
    for word, languages in words.items():
        for language in languages:
            if word not in answers.failed:
                assert found[word, language] == translation(word, language)


def test_every_word_is_answered_once_and_never_again(tmp_path):
    with ChatServer() as server:
        answers = asked(tmp_path, server)
        assert not answers.failed and server.answered == Counter(dict.fromkeys(WORDS, 1))
        assert_all_there(answers)
        assert {pair.source for pair in answers.pairs} == {"chat:m"}
        again = asked(tmp_path, server)
        assert again.pairs == answers.pairs and sum(server.kinds.values()) == 15


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_trouble_alone_is_overcome(tmp_path, trouble):
    with ChatServer(share=0.4, troubles=[trouble]) as server:
        answers = asked(tmp_path, server)
        assert not answers.failed and server.kinds[trouble] > 0
        assert_all_there(answers)
        expected = {
            "wrong-words": "not asked about: word",
            "extra-languages": "not asked about: language",
            "busy": "retried: HTTP 429",
            "broken": "retried: HTTP 500",
            "silent": "retried: timed out",
            "not-json": "retried: answer is not JSON",
            "prose": "retried: the model wrote no valid JSON",
        }
        if trouble in expected:
            assert answers.remarks[expected[trouble]] > 0
        assert_all_there(asked(tmp_path, server))


def test_all_troubles_at_once(tmp_path):
    with ChatServer(share=0.6) as server:
        answers = asked(tmp_path, server, words_per_request=4)
        assert_all_there(answers)
        assert not answers.failed and len(server.kinds) > 10


def test_words_that_break_the_endpoint_are_listed_and_cost_no_others(tmp_path):
    with ChatServer(poison=["word7", "word250"]) as server:
        answers = asked(tmp_path, server, attempts=2)
    assert set(answers.failed) == {"word7", "word250"} and "HTTP 500" in answers.failed["word7"]
    assert_all_there(answers)


def test_words_that_an_answer_leaves_out_again_and_again_are_listed(tmp_path):
    with ChatServer(share=1.0, troubles=["missing"]) as server:
        answers = asked(tmp_path, server, {f"w{number}": ("de",) for number in range(10)})
    assert answers.failed and set(answers.failed.values()) == {"the answer leaves all words out"}
    assert len(answers.pairs) + len(answers.failed) == 10


def test_a_server_without_structured_output_is_asked_in_words(tmp_path):
    with ChatServer(structured=False) as server:
        answers = asked(tmp_path, server)
        assert_all_there(answers)
        assert not answers.failed and server.kinds["no-structure"] <= 8


def test_the_key_is_sent_and_never_told(tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    with ChatServer() as server:
        asked(tmp_path, server)
        assert server.keys == {f"Bearer {KEY}"}
        server.shutdown()
    assert KEY not in caplog.text + "".join(capsys.readouterr()) + (tmp_path / "answers.jsonl").read_text()
    with pytest.raises(ValueError, match="leave the password out, and set OPENAI_API_KEY") as found:
        ChatSettings(url=f"http://user:{KEY}@host/v1", model="m", languages=["de"])
    assert f":{KEY}@" not in str(found.value).partition("[type")[0]


def test_an_endpoint_that_never_answers_is_given_up(tmp_path):
    with (
        ChatServer(share=1.0, troubles=["silent"]) as server,
        pytest.raises(ValueError, match=r"127.0.0.1 has answered none of the last 40 requests \(now: timed out"),
    ):
        asked(tmp_path, server, parallel=2, timeout=0.05)


def test_nothing_listens_there(tmp_path):
    with ChatServer() as server:
        pass
    with pytest.raises(ValueError, match="has answered none of the last 20 requests .*connection lost"):
        asked(tmp_path, server, parallel=1)


@pytest.mark.parametrize(("path", "message"), [("/v2", r"HTTP 404 .*no such path.*check the url")])
def test_a_refusal_ends_it_at_once(tmp_path, path, message):
    with ChatServer() as server:
        url = server.url.removesuffix("/v1") + path
        with pytest.raises(ValueError, match=message):
            asked(tmp_path, server, url=url)
        assert sum(server.kinds.values()) <= 8


def test_the_rate_is_kept(tmp_path):
    with ChatServer() as server:
        asked(tmp_path, server, requests_per_minute=60 / 0.05)
        gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert sum(gaps) >= 0.05 * len(gaps) * 0.9


def test_the_cost_has_a_limit_before_and_while_it_is_spent(tmp_path):
    with ChatServer() as server:
        with pytest.raises(ValueError, match=r"more than most_cost \(0.01\)"):
            asked(tmp_path, server, price=(10.0, 10.0), most_cost=0.01)
        assert not server.kinds
        found = estimate(batches_of(WORDS, settings(server)), settings(server, price=(1.0, 2.0)))
        assert (found.words, found.requests) == (300, 15) and found.cost > 0
        with pytest.raises(ValueError, match="were spent, the limit; all answers are kept"):
            server.prompt_tokens = 1000  # far more than estimated
            asked(tmp_path, server, price=(1000.0, 1.0), most_cost=5.0, parallel=1)
        spent = sum(server.answered.values())
        assert 0 < spent < 300
        assert_all_there(asked(tmp_path, server))
        assert sum(server.answered.values()) == 300
    with pytest.raises(ValueError, match="most_cost: a limit needs the price"):
        ChatSettings(url="http://a/v1", model="m", languages=["de"], most_cost=1)


def test_a_cache_that_was_cut_short_loses_one_line(tmp_path):
    with ChatServer() as server:
        asked(tmp_path, server)
        path = tmp_path / "answers.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:10])
        answers = asked(tmp_path, server)
        assert_all_there(answers)
        assert sum(server.answered.values()) == 301
        path.write_bytes(b"not an answer\n" + b"".join(lines))
        with pytest.raises(ValueError, match="answers.jsonl:1: not an answer"):
            asked(tmp_path, server)


def test_another_model_is_asked_anew(tmp_path):
    with ChatServer() as server:
        asked(tmp_path, server)
        asked(tmp_path, server, model="other")
        assert set(server.answered.values()) == {2}


def start_build(tmp_path, url, words):
    corpus = tmp_path / "text.txt"
    corpus.write_text(" ".join(word for word in words for _ in range(2)))
    (tmp_path / "chat.yaml").write_text(
        f"url: {url}\nmodel: m\nlanguages: [de]\nwords_per_request: 10\nparallel: 4\ntimeout: 1\n"
    )
    tools = REPOSITORY / "tools"
    if not (tmp_path / "corpus").exists():
        fetch = [sys.executable, tools / "fetch_corpus.py", corpus, "--language", "en", "--splits", "train=1"]
        subprocess.run([*fetch, "--output", tmp_path / "corpus"], check=True, capture_output=True)
    build = [
        sys.executable,
        tools / "build_table.py",
        "--corpus",
        tmp_path / "corpus",
        "--chat",
        tmp_path / "chat.yaml",
    ]
    return subprocess.Popen(
        [*map(str, build), "--output", str(tmp_path / "table.jsonl")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_answered_word_is_asked_again_after_a_kill(tmp_path, how):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + c for a in letters for b in letters[:10] for c in letters[:10]]
    with ChatServer(share=0.3, log=tmp_path / "answered") as server:
        process = start_build(tmp_path, server.url, words)
        while sum(server.answered.values()) < 300:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (130 if how == signal.SIGINT else -how), err
        process = start_build(tmp_path, server.url, words)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    table = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert {entry["word"]: entry["translations"]["de"] for entry in table} == {w: [translation(w, "de")] for w in words}
    twice = sum(number - 1 for number in server.answered.values())
    # An interruption waits for the answers that are under way; what a kill cuts off had not come back.
    assert twice <= (0 if how == signal.SIGINT else 4 * 10)
    assert KEY not in out + err and os.environ["OPENAI_API_KEY"] == KEY


def test_which_words_lack_what():
    counts = {
        w: WordCount(n, n) for w, n in [("the", 9), ("The", 5), ("Paris", 4), ("polish", 3), ("Polish", 6), ("7", 9)]
    }
    pairs = [Pair("the", "de", "der", "d"), Pair("paris", "ru", "Париж", "d")]
    found = words_without(counts, pairs, ["de", "ru"], 5)
    assert found == {"the": ("ru",), "polish": ("de", "ru")}
    assert words_without(counts, pairs, ["de", "ru"])["Paris"] == ("de",)


@pytest.mark.parametrize(
    "answer",
    [
        {"translations": [{"word": "Piano", "de": ["Klavier", "Klavier", "\u200eFlügel "]}]},
        [{"word": "piano", "de": ["Klavier", 3, "Flügel"]}, "noise", {"word": None}],
        {"translations": {"piano": {"de": ["Klavier", "Flügel"], "fr": ["piano"]}}},
        {"translations": [{"word": "piano", "translations": {"de": ["Klavier", "Flügel"]}}]},
    ],
)
def test_what_is_usable_of_an_answer(answer):
    assert checked(answer, ["piano", "well"], ["de"], Counter()) == {("piano", "de"): ["Klavier", "Flügel"]}


@pytest.mark.parametrize("answer", [None, 3, "x", [], {"translations": None}, {"translations": "no"}, {}])
def test_what_is_no_answer(answer):
    assert checked(answer, ["piano"], ["de"], Counter()) == {}


def test_retry_after_has_seconds_or_a_date():
    assert _retry_after("2") == 2 and _retry_after("1e9") == 300 and _retry_after("-1") == 0
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _retry_after("soon") is _retry_after(None) is _retry_after("nan") is None


def test_json_is_found_in_prose():
    assert _json_in('Sure: {"a": [1]} done') == {"a": [1]} and _json_in("```\n[1]\n```") == [1]
    for text in ("none", None, "{broken", "[" * 100_000):
        with pytest.raises(Retry):
            _json_in(text)
