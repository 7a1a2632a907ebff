"""Text in: files of every kind, splits by page, fetching that resumes, and token files that Megatron reads."""

import gzip
import json
import lzma
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import REPOSITORY, gpt2_style, make_text
from megatron.core.datasets.indexed_dataset import IndexedDataset

from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.corpus import fetch as fetching
from prealign_ds.corpus.clone import CloneTokens, clone_ids
from prealign_ds.corpus.documents import TextCorpus, parse_splits, read_file, split_of
from prealign_ds.corpus.fetch import fetch
from prealign_ds.corpus.tokenization import tokenize_corpus
from prealign_ds.corpus.tokenizer import load_tokenizer, tokenizer_digest, train_tokenizer
from prealign_ds.corpus.tokens import CorpusTokens
from prealign_ds.files import read_json, sha256_file, write_json

SPLITS = {"train": 0.7, "valid": 0.3}
RECORDS = [{"text": f"Page {n}. " + make_text(120, n), "page": f"p{n // 2}"} for n in range(60)]


def write_jsonl(path, records=RECORDS):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def corpus(tmp_path):
    return fetch(tmp_path / "text", [str(write_jsonl(tmp_path / "in.jsonl"))], "en", SPLITS)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tok"
    gpt2_style().save_pretrained(folder)
    return folder


def test_every_kind_of_file_gives_its_documents(tmp_path):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS[:3]).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.Table.from_pylist(RECORDS[:3]), tmp_path / "a.parquet")
    for file in tmp_path.iterdir():
        found = list(read_file(file))
        assert [(d.text, d.page) for d in found] == [(r["text"], r["page"]) for r in RECORDS[:3]], file.name


def test_markup_becomes_prose(tmp_path):
    (tmp_path / "a.md").write_text('# Title\n\n> _"So\n> it"_ **is**, [see](http://x.y/z_(1)).\n\nsnake_case stays\n')
    (tmp_path / "a.html").write_text(
        "<html><head><title>no</title></head><body><p>One <b>bold</b>\n word.</p>"
        "<script>x</script><p>Two &amp; 3</p></body>"
    )
    (markdown,), (html,) = read_file(tmp_path / "a.md"), read_file(tmp_path / "a.html")
    assert markdown.text == 'Title\n\n"So it" is, see.\n\nsnake_case stays'
    assert html.text == "One bold word.\n\nTwo & 3" and markdown.page == html.page == "a"


def test_a_long_text_file_is_cut_between_paragraphs_into_pages(tmp_path):
    paragraphs = [make_text(300, n).replace("\n", " ") for n in range(120)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    found = list(read_file(tmp_path / "book.txt"))
    assert "\n\n".join(d.text for d in found).split() == " ".join(paragraphs).split()
    assert max(len(d.text) for d in found) < 14_000 and len({d.page for d in found}) > 3
    assert max(Counter(d.page for d in found).values()) <= 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nbad \xff byte\n", r"a.txt:2: not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a.jsonl:2: expected an object with a string 'text'"),
        ("a.jsonl", b'{"text": "x"}\n\n{oops\n', r"a.jsonl:3: not JSON"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n' * 2000, mtime=0)[:-20],
            r"a.jsonl.gz:\d+: damaged or cut short",
        ),
        ("a.parquet", b"PAR1", r"a.parquet: not a Parquet file"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a.jsonl:1: half a surrogate pair"),
        ("a.docx", b"x", r"a.docx: unknown kind of file; use .txt, .md"),
        ("a.txt", b" \n", r"no text found; nothing was written"),
    ],
)
def test_bad_files_are_named_and_leave_no_corpus(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        fetch(tmp_path / "text", [str(tmp_path / name)], "en", SPLITS)
    assert not (tmp_path / "text").exists()


def test_missing_files_and_bad_splits(tmp_path):
    with pytest.raises(ValueError, match="no text files here"):
        fetch(tmp_path / "text", [str(tmp_path / "none*.txt")], "en", SPLITS)
    with pytest.raises(ValueError, match="together they make 1"):
        parse_splits("train=0.9,valid=0.2")
    with pytest.raises(ValueError, match="write them as train=0.9,valid=0.1"):
        parse_splits("train")
    with pytest.raises(ValueError, match="is not a new NAME=SHARE"):
        parse_splits("../x=0.5,b=0.5")
    with pytest.raises(ValueError, match="no text corpus here"):
        TextCorpus.open(tmp_path)


def test_splits_keep_pages_whole_and_have_their_shares(corpus):
    by_split = {split: list(corpus.documents(split)) for split in SPLITS}
    assert sorted(d.text for docs in by_split.values() for d in docs) == sorted(r["text"] for r in RECORDS)
    assert not {d.page for d in by_split["train"]} & {d.page for d in by_split["valid"]}
    draws = Counter(split_of(f"page {n}", {"a": 0.8, "b": 0.15, "c": 0.05}, 3) for n in range(20_000))
    assert draws["b"] == pytest.approx(3000, rel=0.06) and draws["c"] == pytest.approx(1000, rel=0.1)
    os.truncate(corpus.shards[0], 2000)
    with pytest.raises(ValueError, match=r"documents-00000.jsonl.zst:\d+: damaged or cut short"):
        list(corpus.documents())
    with pytest.raises(ValueError, match="no split 'test'; it has train, valid"):
        next(corpus.documents("test"))


def test_duplicates_limit_and_the_same_request_again(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", RECORDS + RECORDS[:5])
    corpus = fetch(tmp_path / "text", [str(path)], "en", SPLITS)
    assert corpus.manifest["duplicates"] == 5 and corpus.manifest["documents"] == 60
    original = path.read_text()
    path.write_text(original + json.dumps({"text": "more"}))
    with pytest.raises(ValueError, match=r"in.jsonl: changed since .*text was made of it"):
        fetch(tmp_path / "text", [str(path)], "en", SPLITS)
    path.unlink()
    assert fetch(tmp_path / "text", [str(path)], "en", SPLITS).manifest == corpus.manifest
    with pytest.raises(ValueError, match="holds text of another request"):
        fetch(tmp_path / "text", [str(path)], "de", SPLITS)
    write_jsonl(path)
    small = fetch(tmp_path / "small", [str(path)], "en", SPLITS, limit_bytes=3000)
    assert 3000 <= small.manifest["bytes"] < 4500


def test_an_interrupted_fetch_goes_on_after_its_last_shard(tmp_path, monkeypatch):
    source = [str(write_jsonl(tmp_path / "in.jsonl"))]
    whole = fetch(tmp_path / "whole", source, "en", SPLITS, shard_bytes=5000)
    real, read = fetching.read_file, []

    def breaks(path, text_key):
        for document in real(path, text_key):
            if len(read) == 33:
                raise KeyboardInterrupt
            read.append(document)
            yield document

    monkeypatch.setattr(fetching, "read_file", breaks)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path / "text", source, "en", SPLITS, shard_bytes=5000)
    assert not (tmp_path / "text").exists()
    done = len(read_json(tmp_path / ".text.fetching" / "state.json")["shards"])
    assert done >= 3
    monkeypatch.setattr(fetching, "read_file", real)
    resumed = fetch(tmp_path / "text", source, "en", SPLITS, shard_bytes=5000)
    assert resumed.manifest == whole.manifest and not (tmp_path / ".text.fetching").exists()


def test_a_data_set_is_streamed_from_any_of_its_rows(tmp_path):
    """The library reads a folder as it reads the hub."""
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set/train.jsonl")
    source = f"hub:{tmp_path}/set"
    corpus = fetch(tmp_path / "text", [source], "en", SPLITS)
    assert sorted(d.text for d in corpus.documents()) == sorted(record["text"] for record in RECORDS)
    found = list(fetching._documents([source], "text", 58))
    assert [(d.text, d.page) for d in found] == [(RECORDS[n]["text"], f"{tmp_path}/set:{n}") for n in (58, 59)]
    with pytest.raises(ValueError, match="no column 'body'; it has text, page"):
        next(fetching._documents([source], "body", 0))


def test_tokens_decode_to_the_text_and_megatron_reads_them(corpus, tokenizer_folder, tmp_path):
    manifest = tokenize_corpus(corpus, tokenizer_folder, tmp_path / "tokens", workers=1)
    tokenizer = load_tokenizer(tokenizer_folder)
    for split, counts in manifest["splits"].items():
        dataset = IndexedDataset(str(tmp_path / "tokens" / split))
        texts = [d.text for d in corpus.documents(split)]
        assert len(dataset) == counts["documents"] == len(texts) and counts["dtype"] == "uint16"
        for row, text in zip(dataset, texts, strict=True):
            assert row[-1] == tokenizer.eos_token_id and tokenizer.decode(row[:-1]) == text
        assert dataset.document_indices.tolist() == list(range(len(texts) + 1))
        for kind, digest in counts["sha256"].items():
            assert sha256_file(tmp_path / "tokens" / f"{split}.{kind}") == digest
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
        tokens = CorpusTokens(tmp_path / "tokens", split)
        assert tokens.num_tokens == counts["tokens"] and tokens.num_bytes == counts["bytes"]
        assert (tokens.read(0, 10**9) == np.concatenate(list(dataset))).all()
        assert len(tokens.read(tokens.num_tokens + 5, 3)) == 0


def test_the_files_do_not_depend_on_the_number_of_workers(corpus, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("prealign_ds.corpus.tokenization._CHUNK_CHARACTERS", 2000)
    for workers in (1, 2):
        tokenize_corpus(corpus, tokenizer_folder, tmp_path / f"tokens{workers}", workers)
    for name in ("train.bin", "train.idx", "valid.bin", "valid.idx", "manifest.json"):
        assert (tmp_path / "tokens1" / name).read_bytes() == (tmp_path / "tokens2" / name).read_bytes()


def test_a_killed_worker_ends_tokenization_and_leaves_nothing(corpus, tokenizer_folder, tmp_path, monkeypatch):
    lines = list(corpus.lines())

    def lines_with_an_accident(self):
        yield from lines
        multiprocessing.active_children()[0].kill()
        yield from lines * 100

    monkeypatch.setattr("prealign_ds.corpus.tokenization._CHUNK_CHARACTERS", 2000)
    monkeypatch.setattr(TextCorpus, "lines", lines_with_an_accident)
    with pytest.raises(ValueError, match="a tokenizing process was killed"):
        tokenize_corpus(corpus, tokenizer_folder, tmp_path / "tokens", 2)
    assert not (tmp_path / "tokens").exists() and not list(tmp_path.glob(".tokens.*.partial"))


def test_what_every_worker_imports_is_light():
    code = "import sys, tools.tokenize_corpus; sys.exit(bool({'torch', 'transformers', 'megatron'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_tokenizing_again_returns_and_another_request_is_refused(corpus, tokenizer_folder, tmp_path):
    first = tokenize_corpus(corpus, tokenizer_folder, tmp_path / "tokens", 1)
    assert tokenize_corpus(corpus, tokenizer_folder, tmp_path / "tokens", 1) == first
    train_tokenizer([make_text(4000, 3)], 300, tmp_path / "other")
    with pytest.raises(ValueError, match="holds other tokens than asked for"):
        tokenize_corpus(corpus, tmp_path / "other", tmp_path / "tokens", 1)
    with pytest.raises(ValueError, match="tokenized with another tokenizer"):
        CorpusTokens(tmp_path / "tokens").check_tokenizer(tokenizer_digest(tmp_path / "other"), tmp_path / "other")


def test_a_split_without_documents_is_refused_and_nothing_is_left(tmp_path, tokenizer_folder):
    path = write_jsonl(tmp_path / "in.jsonl", RECORDS[:1])
    corpus = fetch(tmp_path / "text", [str(path)], "en", SPLITS)
    with pytest.raises(ValueError, match="got no document"):
        tokenize_corpus(corpus, tokenizer_folder, tmp_path / "tokens", 1)
    assert not (tmp_path / "tokens").exists() and not list(tmp_path.glob(".tokens.*.partial"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: os.truncate(f / "train.bin", 100), r"train.bin: truncated \(100 bytes"),
        (lambda f: os.truncate(f / "train.idx", 50), "train.idx: truncated"),
        (lambda f: os.truncate(f / "train.idx", 3), "train.idx: not a Megatron index"),
        (lambda f: (f / "train.bin").unlink(), "train.bin: missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: not a valid JSON file"),
        (lambda f: (f / "manifest.json").write_text("{}"), "not that of a tokenized corpus"),
        (lambda f: [shutil.copy(f / f"valid.{k}", f / f"train.{k}") for k in ("bin", "idx")], "do not belong together"),
    ],
)
def test_damaged_token_files_are_named(corpus, tokenizer_folder, tmp_path, damage, message):
    tokenize_corpus(corpus, tokenizer_folder, tmp_path / "tokens", 1)
    damage(tmp_path / "tokens")
    with pytest.raises(ValueError, match=message):
        CorpusTokens(tmp_path / "tokens", "train")


def test_a_bare_megatron_prefix_is_a_corpus_and_clones_are_views(corpus, tokenizer_folder, tmp_path):
    tokenize_corpus(corpus, tokenizer_folder, tmp_path / "tokens", 1)
    view = CorpusTokens(tmp_path / "tokens" / "train").read(0, 100)  # outlives what it was read from
    bare = pickle.loads(pickle.dumps(CorpusTokens(tmp_path / "tokens" / "train")))
    assert (view == bare.read(0, 100)).all()
    assert bare.num_bytes is None and bare.num_tokens == CorpusTokens(tmp_path / "tokens").num_tokens
    tokenizer = load_tokenizer(tokenizer_folder)
    clone = CloneTokens(bare, clone_ids(tokenizer))
    original, copy = bare.read(5, 300).astype(int), clone.read(5, 300)
    special = original == tokenizer.eos_token_id
    assert special.any() and (copy[special] == original[special]).all()
    assert (copy[~special] == original[~special] + len(tokenizer)).all()


@pytest.mark.parametrize("vocab_size", [100, 100_000])
def test_impossible_vocabularies_are_refused(tmp_path, vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size {vocab_size}"):
        train_tokenizer([make_text(100)], vocab_size, tmp_path / "tok")
    assert not (tmp_path / "tok").exists()


def test_a_tokenizer_without_end_of_text_is_refused(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path / "tok")
    config = read_json(tmp_path / "tok" / "tokenizer_config.json")
    write_json(tmp_path / "tok" / "tokenizer_config.json", {k: v for k, v in config.items() if k != "eos_token"})
    with pytest.raises(ValueError, match="has no eos_token"):
        load_tokenizer(tmp_path / "tok")


def tool(name, *arguments):
    command = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_tools_work_one_after_the_other_and_fail_in_one_line(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl")
    text, tok = tmp_path / "text", tmp_path / "tok"
    assert "60 documents" in tool("fetch_corpus", source, "--language", "en", "--output", text).stdout
    assert tool("train_tokenizer", "--input", text, "--vocab-size", 350, "--output", tok).returncode == 0
    done = tool("tokenize_corpus", "--input", text, "--tokenizer", tok, "--output", tmp_path / "tokens")
    assert "train: " in done.stdout and done.returncode == 0, done.stderr
    words = tmp_path / "words.txt"
    done = tool("build_table", "--corpus", text, "--clone", "--words", words, "--output", tmp_path / "t.parquet")
    assert "coverage of running words" in done.stdout and "\nclone " in done.stdout, done.stderr
    assert set(words.read_text().split()) >= set(AlignmentTable.load(tmp_path / "t.parquet").words)
    done = tool("fetch_corpus", tmp_path / "none.txt", "--language", "en", "--output", tmp_path / "x")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_of_two_processes_one_builds_and_the_other_waits(corpus, tokenizer_folder, tmp_path):
    command = [sys.executable, "tools/tokenize_corpus.py", "--input", corpus.path, "--tokenizer", tokenizer_folder]
    both = [
        subprocess.Popen([*command, "--output", tmp_path / "tokens", "--workers", "1"], cwd=REPOSITORY, text=True,
                         stdout=subprocess.PIPE) for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and outputs[0] == outputs[1] != ""
    assert sorted(p.name for p in tmp_path.iterdir() if "tokens" in p.name) == [".tokens.lock", "tokens"]


@pytest.mark.network
@pytest.mark.parametrize("lists", ["the machine's package lists", "no package lists yet"])
def test_a_debian_package_is_fetched_without_installing_it(tmp_path, monkeypatch, lists):
    if lists.startswith("no"):
        (tmp_path / "lists" / "partial").mkdir(parents=True)
        (tmp_path / "apt.conf").write_text(f'Dir::State::lists "{tmp_path}/lists";\n')
        monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    corpus = fetch(tmp_path / "text", ["debian:anarchism:usr/share/doc/anarchism/markdown/*"], "en", SPLITS)
    assert corpus.manifest["bytes"] > 10e6 and corpus.manifest["documents"] > 130
    with pytest.raises(ValueError, match="apt-get could not download it"):
        fetch(tmp_path / "x", ["debian:no-such-package-anywhere"], "en", SPLITS)
