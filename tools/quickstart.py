"""PreAlign and Joint Training on real text, from nothing to a table of perplexities.

    make quickstart                      English from Debian's package `anarchism`, and its En-Clone
    SCALE=0.1 make quickstart            a tenth of the training
    CORPUS=my.txt make quickstart        your own text (txt, jsonl, parquet; gz, xz, zst)

Every step is a command that is printed before it runs and can be run by hand. What is done is not done again.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run
from prealign_ds.files import read_json, write_json

RECIPE = "launchers/recipes/quickstart.yaml"
DEBIAN_CORPUS = "debian:anarchism:usr/share/doc/anarchism/markdown/*"
SYSTEMS = {"joint": ["stages=[pretrain]", "codeswitch.mode=off"], "prealign": []}
TOKENS_BY_HAND = 3_145_728


def command(*words: object) -> float:
    """Print and run a command; return its seconds."""
    print("\n$ " + " ".join(str(word) for word in words), flush=True)
    began = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True)
    return time.perf_counter() - began


def prepare(data: Path, corpus: str) -> float:
    """Text, tokenizer, token files and table in ``data``; return the seconds it took."""
    python = sys.executable
    seconds = command(
        python, "tools/fetch_corpus.py", corpus, "--language", "en",
        "--splits", "train=0.89,clone=0.06,valid=0.05", "--output", data / "text",
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


def hardware() -> tuple[list[str], list[str]]:
    """Launcher words and overrides for this machine: a GPU where there is one, else bf16 where the CPU has it."""
    import torch

    if torch.cuda.is_available():
        config = "zero1_bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "zero1_fp16"
        return ["--num_gpus", "1"], [f"deepspeed=ds_configs/{config}.json"]
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    bf16 = "amx_bf16" in flags or "avx512_bf16" in flags
    return ["--num_gpus", "1"], [f"deepspeed=ds_configs/{'cpu' if bf16 else 'cpu_fp32'}.json"]


def main() -> None:
    """Prepare, train both systems, compare."""
    began = time.perf_counter()
    scale = float(os.environ.get("SCALE", "1"))
    corpus = os.environ.get("CORPUS", DEBIAN_CORPUS)
    name = "quickstart" if corpus == DEBIAN_CORPUS else f"quickstart-{Path(corpus).name}"
    data, runs = Path("data") / name, Path("runs") / name
    spent = read_json(runs / "seconds.json") if (runs / "seconds.json").exists() else {}
    prepared = prepare(data, corpus)
    spent.setdefault("prepare", prepared)
    launcher, overrides = hardware()
    overrides += [f"lm_tokens={max(65536, round(TOKENS_BY_HAND * scale))}"]
    overrides += [f"data.tokenizer={data}/tokenizer", f"table.path={data}/table.parquet"]
    overrides += [f"data.{kind}.{place}.path={data}/tokens" for kind in ("corpora", "held_out") for place in (0, 1)]
    summary: dict = {"perplexity": {}, "tokens": {}, "seconds": spent}
    for system, choices in SYSTEMS.items():
        folder = runs / (system if scale == 1 else f"{system}-scale{scale:g}")
        fresh = not (folder / "model").is_dir()
        deepspeed = shutil.which("deepspeed", path=str(Path(sys.executable).parent)) or "deepspeed"
        seconds = command(
            deepspeed, *launcher, "launchers/pretrain.py", RECIPE, f"run_dir={folder}", *overrides, *choices
        )
        if fresh:
            spent[system] = seconds
            write_json(runs / "seconds.json", spent)
        last = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
        summary["perplexity"][system] = last["perplexity"]
        summary["tokens"][system] = last["tokens"]
    spent["total"] = time.perf_counter() - began
    write_json(runs / "summary.json", summary)
    show(summary, runs)


def show(summary: dict, runs: Path) -> None:
    """Print the table."""
    joint, prealign = summary["perplexity"]["joint"], summary["perplexity"]["prealign"]
    print(
        f"\nHeld-out perplexity after {summary['tokens']['prealign']:,} LM tokens (both systems, stage 1's included)\n"
    )
    print(f"{'':10}{'Joint':>12}{'PreAlign':>12}{'ratio':>10}")
    for language in joint:
        ratio = prealign[language] / joint[language]
        print(f"{language:10}{joint[language]:12.2f}{prealign[language]:12.2f}{ratio:10.3f}")
    print(f"\nWritten to {runs}/summary.json; the logs of each run are in {runs}/*/metrics.jsonl and eval.jsonl.")


if __name__ == "__main__":
    run(main)
