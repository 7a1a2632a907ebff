"""Similarity, leakage and transfer on several ranks, the first two inside a ZeRO-3 engine.

Usage: worker_evaluations.py OUTPUT.json TRAIN.tsv TEST.tsv
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
sys.argv = [argument for argument in sys.argv if not argument.startswith("--local_rank")]

from conftest import Row, gpt2_style, make_text

from prealign_ds.alignment.counting import count_words
from prealign_ds.alignment.rows import TableRows
from prealign_ds.alignment.stage import JointModel
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import (
    ClassificationSettings,
    LeakageSettings,
    ModelSettings,
    OptimizerSettings,
    SimilaritySettings,
)
from prealign_ds.evaluation.classification import ZeroShotTransfer
from prealign_ds.evaluation.leakage import ScriptLeakage
from prealign_ds.evaluation.similarity import WordSimilarity
from prealign_ds.files import write_json
from prealign_ds.model import build_model, model_config
from prealign_ds.training.engine import engine_config, read_ds_config, start_engine
from prealign_ds.training.environment import join_world, leave_world
from prealign_ds.training.kernels import Kernels
from prealign_ds.training.plan import StagePlan


def evaluate(tokenizer, compute, model, device):
    """Similarity and leakage of a model, with uneven shares of the ranks."""
    text = make_text(1000)
    table = AlignmentTable.clone(count_words([text], workers=1)).hold_out(0.3, seed=1)
    similarity = WordSimilarity(table, TableRows(table, tokenizer), SimilaritySettings(batch_size=64), 0)
    settings = LeakageSettings(samples=13, prompt_tokens=4, new_tokens=5, batch_size=4)
    held_out = {"en": Row(tokenizer.encode(text))}
    positions = model.config.max_position_embeddings
    leakage = ScriptLeakage(held_out, "en", ["clone", "ru"], tokenizer, 2 * len(tokenizer), positions, settings, 1)
    return {"similarity": similarity.measure(compute, device), "leakage": leakage.measure(compute, device)}


def new_model(tokenizer):
    settings = ModelSettings(num_layers=2, hidden_size=32, num_heads=2, tied_embeddings=False)
    return build_model(model_config(settings, 32, 2 * len(tokenizer), tokenizer), settings, seed=3).eval()


def transfer(tokenizer, model, train, test):
    settings = ClassificationSettings(
        train=train, test={"en": test, "clone": test}, seeds=[1, 2], epochs=2, batch_size=16, learning_rate=1e-3
    )
    return ZeroShotTransfer(tokenizer, model.config, settings).measure(model)


def main():
    output, train, test = sys.argv[1:]
    world = join_world()
    tokenizer = gpt2_style()
    # Before the engine: ZeRO-3 takes the parameters of its model apart.
    found = {"transfer": transfer(tokenizer, new_model(tokenizer), train, test)}
    model = new_model(tokenizer)
    plan = StagePlan("align", 0, 4, 4, 4 // world.size, 1, world.size, 32)
    ds_config = read_ds_config(Path(__file__).parent / "zero3_fp32.json")
    config = engine_config(ds_config, plan, OptimizerSettings(learning_rate=1e-3), Kernels())
    engine = start_engine(JointModel(model, 2 * len(tokenizer)), config, Kernels())
    engine.eval()
    found |= evaluate(tokenizer, lambda task: engine(task=task), model, world.device)
    if world.is_main:
        write_json(output, found)


if __name__ == "__main__":
    main()
    leave_world()
