"""PreAlign and Joint Training on real text, from nothing to a table of perplexities.

    make quickstart                      English from Debian's package `anarchism`, and its En-Clone
    SCALE=0.1 make quickstart            a tenth of the training
    CORPUS=my.txt make quickstart        your own text (txt, jsonl, parquet; gz, xz, zst)

Every step is a command that is printed before it runs and can be run by hand. What is done is not done again.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run
from prealign_ds.files import read_json, write_json

RECIPE = "launchers/recipes/quickstart.yaml"
DEBIAN_CORPUS = "debian:anarchism:usr/share/doc/anarchism/markdown/*"
SYSTEMS = {"joint": ["stages=[pretrain]", "codeswitch.mode=off"], "prealign": []}
FULL_TOKENS = 2_621_440


def command(*words: object) -> float:
    """Print and run a command; return its seconds."""
    print("\n$ " + " ".join(str(word) for word in words), flush=True)
    began = time.perf_counter()
    done = subprocess.run([str(word) for word in words], check=False)
    if done.returncode:
        raise ValueError(f"the command above ended with code {done.returncode}; its own message says why")
    return time.perf_counter() - began


def prepare(data: Path, corpus: str) -> float:
    """Text, tokenizer, token files and table in ``data``; return the seconds it took."""
    python = sys.executable
    seconds = command(
        python, "tools/fetch_corpus.py", corpus, "--language", "en",
        "--splits", "train=0.89,clone=0.06,valid=0.05", "--seed", 1, "--output", data / "text",
    )  # fmt: skip
    if not (data / "tokenizer").is_dir():
        seconds += command(
            python, "tools/train_tokenizer.py", "--input", data / "text", "--vocab-size", 4096,
            "--output", data / "tokenizer",
        )  # fmt: skip
    seconds += command(
        python, "tools/tokenize_corpus.py", "--input", data / "text", "--tokenizer", data / "tokenizer",
        "--output", data / "tokens",
    )  # fmt: skip
    if not (data / "table.parquet").is_file():
        seconds += command(
            python, "tools/build_table.py", "--corpus", data / "text", "--clone", "--min-count", 2,
            "--output", data / "table.parquet",
        )  # fmt: skip
    return seconds


def estimate(overrides: list[str]) -> float:
    """Minutes that both runs will take on this CPU, from three steps of the model on random tokens."""
    import torch

    from prealign_ds.corpus.tokenizer import load_tokenizer
    from prealign_ds.model import build_model, lm_loss_sum, model_config, vocabulary_size
    from prealign_ds.recipe import load_settings
    from prealign_ds.training.environment import tune_cpu
    from prealign_ds.training.plan import plan_stages

    settings = load_settings(RECIPE, overrides)
    tokenizer = load_tokenizer(settings.data.tokenizer)
    vocabulary = vocabulary_size(tokenizer, clone=True)
    tune_cpu(local_ranks=1)
    config = model_config(settings.model, settings.data.sequence_length, vocabulary, tokenizer)
    model = build_model(config, settings.model, seed=0)
    rows = torch.randint(0, vocabulary, (settings.pretrain.micro_batch_size, settings.data.sequence_length))
    bf16 = "torch_autocast" in read_json(settings.deepspeed)
    for repeat in range(4):
        if repeat == 1:  # the first step also warms up
            began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            lm_loss_sum(model(input_ids=rows, use_cache=False).logits, rows, vocabulary).backward()
    seconds_per_token = (time.perf_counter() - began) / 3 / rows.numel()
    steps = plan_stages(settings, 1)[0].num_steps
    word_tokens = steps * settings.align.words_per_step * 6  # a word has about two forms with a clone each, padded
    return (2 * settings.lm_tokens + word_tokens) * seconds_per_token / 60


def main() -> None:
    """Prepare, train both systems, compare."""
    from prealign_ds.reproduction.machine import deepspeed_command, fitting_ds_config

    scale = float(os.environ.get("SCALE", "1"))
    corpus = os.environ.get("CORPUS", DEBIAN_CORPUS)
    name = "quickstart" if corpus == DEBIAN_CORPUS else f"quickstart-{Path(corpus).name}"
    data, runs = Path("data") / name, Path("runs") / name
    record = runs / f"seconds-{scale:g}.json"
    prepared = prepare(data, corpus)
    spent = read_json(record) if record.exists() else {"prepare": prepared}
    overrides = [fitting_ds_config()]
    overrides += [f"lm_tokens={max(65536, round(FULL_TOKENS * scale))}"]
    overrides += [f"data.tokenizer={data}/tokenizer", f"table.path={data}/table.parquet"]
    overrides += [f"data.{kind}.{place}.path={data}/tokens" for kind in ("corpora", "held_out") for place in (0, 1)]
    folders = {system: runs / (system if scale == 1 else f"{system}-scale{scale:g}") for system in SYSTEMS}
    if "cpu" in overrides[0] and not all((folder / "model").is_dir() for folder in folders.values()):
        minutes = estimate(overrides)
        print(
            f"\nBoth runs will take about {minutes:.0f} minutes on this machine; SCALE=0.5 would halve that.",
            flush=True,
        )
    summary: dict = {"perplexity": {}, "tokens": {}, "seconds": spent}
    for system, choices in SYSTEMS.items():
        folder = folders[system]
        if not (folder / "model").is_dir():
            seconds = command(
                *deepspeed_command(ranks=1), "launchers/pretrain.py", RECIPE, f"run_dir={folder}", *overrides, *choices
            )
            spent[system] = spent.get(system, 0.0) + seconds
            write_json(record, spent)
        last = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
        summary["perplexity"][system] = last["perplexity"]
        summary["tokens"][system] = last["tokens"]
    spent["total"] = sum(spent[part] for part in ("prepare", *SYSTEMS))
    write_json(runs / "summary.json", summary)
    command(sys.executable, "tools/report.py", *folders.values(), "--output", runs / "compare.html")
    show(summary, runs)


def show(summary: dict, runs: Path) -> None:
    """Print the table."""
    joint, prealign = summary["perplexity"]["joint"], summary["perplexity"]["prealign"]
    tokens, minutes = summary["tokens"]["prealign"], summary["seconds"]["total"] / 60
    print(f"\nHeld-out perplexity after {tokens:,} LM tokens each, stage 1's included ({minutes:.1f} minutes in all)\n")
    print(f"{'':10}{'Joint':>12}{'PreAlign':>12}{'ratio':>10}")
    for language in joint:
        ratio = prealign[language] / joint[language]
        print(f"{language:10}{joint[language]:12.2f}{prealign[language]:12.2f}{ratio:10.3f}")
    print(f"\nWritten to {runs}/summary.json. Open {runs}/compare.html in a browser: both runs on one page.")


if __name__ == "__main__":
    run(main)
