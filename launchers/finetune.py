"""Zero-shot cross-lingual transfer: fine-tune a saved model on labelled text of one language, test it in others.

    python launchers/finetune.py --model RUN_DIR/model --train en.tsv --test en=test.tsv clone=test.tsv ar=-
    accelerate launch --num_processes 8 launchers/finetune.py --model RUN_DIR/model --train xnli-en.parquet ...

Labelled text: .tsv (label<TAB>text), .jsonl or .parquet (label, and text or premise and hypothesis), or
hub:DATASET:CONFIG:SPLIT, for example hub:facebook/xnli:de:test. `-` is a language without any. --set changes a key of
ClassificationSettings (prealign_ds/config.py). The result is printed and written to MODEL/transfer.json.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a saved model and its tokenizer")
    parser.add_argument("--train", required=True, help="labelled text of the source language")
    parser.add_argument("--test", nargs="+", required=True, metavar="LANGUAGE=FILE", help="labelled text to test on")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for example epochs=5 seeds=[1,2]")
    parser.add_argument("--output", type=Path, help="where to write the result; default MODEL/transfer.json")
    return parser.parse_args()


def main() -> None:
    """Read everything, fine-tune, test."""
    arguments = parse_arguments()
    test = {}
    for pair in arguments.test:
        language, _, file = pair.partition("=")
        if not file or language in test:
            raise ValueError(f"--test {pair!r}: write LANGUAGE=FILE, each language once, and LANGUAGE=- for no text")
        test[language] = None if file == "-" else file
    values = {"train": arguments.train, "test": test}

    from prealign_ds.config import ClassificationSettings
    from prealign_ds.recipe import parse_settings

    settings = parse_settings(ClassificationSettings, values, arguments.set, "evaluation.classification")

    from accelerate import Accelerator

    from prealign_ds.corpus.tokenizer import load_tokenizer
    from prealign_ds.evaluation.classification import ZeroShotTransfer
    from prealign_ds.files import write_json
    from prealign_ds.model import load_exported

    model = load_exported(arguments.model)
    transfer = ZeroShotTransfer(load_tokenizer(arguments.model), model.config, settings)
    accelerator = Accelerator()
    found = transfer.measure(model, accelerator)
    if accelerator.is_main_process:
        for language, result in found["accuracy"].items():
            spread = f" ± {result['std']:.2%}" if result and result["std"] is not None else ""
            print(f"{language:8} {result['mean']:.2%}{spread} of {result['n']}" if result else f"{language:8} -")
        write_json(arguments.output or arguments.model / "transfer.json", found)
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
