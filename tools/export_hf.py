"""A run's model as a Hugging Face folder: weights, configuration, tokenizer, model card.

    python tools/export_hf.py RUN_DIR --output DIR                                      its final model
    python tools/export_hf.py RUN_DIR --checkpoint pretrain/step-00000400 --output DIR  any checkpoint of any ranks
    python tools/export_hf.py RUN_DIR --model RUN_DIR/align --output DIR                stage 1's result

--checkpoint newest takes the newest complete one. DIR must not exist; it appears when it is whole. The embeddings are
cut to the ids in use unless --keep-padding. DeepSpeed's checkpoints are pickles, which can run code when they are
loaded: export only from run folders that you trust. A checkpoint outside RUN_DIR is refused.
"""

import argparse
import contextlib
import sys
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run


def main() -> None:
    """Parse, find the model, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", metavar="NAME", help="STAGE/step-N of RUN_DIR/checkpoints, or newest")
    which.add_argument("--model", type=Path, metavar="PATH", help="model folder or checkpoint; default RUN_DIR/model")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--keep-padding", action="store_true", help="keep the embeddings' rows that no id uses")
    parser.add_argument("--license", help="of the model, for its card: apache-2.0, cc-by-4.0, other, ...")
    arguments = parser.parse_args()
    if not (arguments.run_dir / "config.yaml").is_file():
        raise ValueError(f"{arguments.run_dir}: no config.yaml; name the folder of a run")
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed then logs
        from prealign_ds.exporting.export import export_model
        from prealign_ds.exporting.source import Source, find_model

        folder = find_model(arguments.run_dir, arguments.checkpoint, arguments.model)
        source = Source.open(arguments.run_dir, folder)
        export_model(source, arguments.output, arguments.dtype, arguments.keep_padding, arguments.license)
    print(f"{arguments.output}: {folder} after {source.tokens:,} tokens, {arguments.dtype}")


if __name__ == "__main__":
    run(main)
