"""Folders of runs as the launchers would leave them, with made-up numbers."""

import json

from building import write_recipe

from prealign_ds.files import write_json
from prealign_ds.recipe import dump_settings, load_settings
from prealign_ds.reproduction.preset import run_folder
from prealign_ds.reproduction.systems import SYSTEMS

CLONE_SYSTEMS = ["joint", "prealign", "only_tgt", "prealign_beta25"]


def write_preset(folder, **changes):
    """A preset on the recipe of ``building.write_recipe``, whose data need not be there."""
    recipe = write_recipe(folder)
    experiment = {
        "recipe": str(recipe),
        "overrides": ["knowledge.period_tokens=1024", "knowledge.start_tokens=2560"],
        "systems": CLONE_SYSTEMS,
        "prepare": [f"tools/any.py --output {folder}/{name}" for name in ("tokenizer", "tokens", "table.parquet")],
    }
    real = experiment | {"systems": ["joint"], "needs": [str(folder / "en-de.tsv")]}
    preset = {"title": "two steps", "paper_size": "400m", "en_clone": experiment, "real": real} | changes
    path = folder / "preset.yaml"
    path.write_text(json.dumps(preset))
    return path


def write_run(output, recipe, slug, records=(), evaluation=None, finished=True):
    """The folder of a system's run."""
    folder = run_folder(output, "en_clone", slug)
    folder.mkdir(parents=True)
    overrides = SYSTEMS[slug].overrides(load_settings(recipe))
    (folder / "config.yaml").write_text(dump_settings(load_settings(recipe, [*overrides, f"run_dir={folder}"])))
    (folder / "eval.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    if finished:
        (folder / "model").mkdir()
        if evaluation is not None:
            write_json(folder / "model" / "evaluation.json", evaluation)
    return folder


def known(correct, number):
    """One cell of the knowledge test."""
    return {
        "num_facts": number, "num_correct": correct, "accuracy": correct / number, "low": 0.0, "high": 1.0,
    }  # fmt: skip


def period(right, number=4):
    """What a period found: so many of the facts known in each direction, all told once."""
    return {d: {"1": known(n, number), "all": known(n, number)} for d, n in right.items()}


def similarity(*cosines):
    """What the similarity of a held-in sample looks like, layer by layer."""
    return {"clone": {"held_in": {"cosine": list(cosines), "random": [-x for x in cosines]}, "held_out": None}}


def fill(output, recipe):
    """Runs of joint and prealign that are done, of only_tgt without an evaluation, and of a beta that is not done."""
    for slug, factor in (("joint", 1.0), ("prealign", 0.5)):
        records = [
            {"stage": "pretrain", "step": 1, "tokens": 1000, "perplexity": {"en": 100.0, "clone": 400.0 * factor}}
            | {"similarity": similarity(0.1, 0.3, 0.2)},
            {"stage": "pretrain", "step": 2, "tokens": 2000, "perplexity": {"en": 50.0, "clone": 200.0 * factor}}
            | {"knowledge": {"0": period({"en->en": 4, "en->clone": 1}), "1": period({"en->en": 2, "en->clone": 2})}},
        ]
        evaluation = {
            "perplexity": {"en": 48.0, "clone": 190.0 * factor},
            "by_word": {"clone": {"seen": {"perplexity": 150.0}, "unseen": {"perplexity": 300.0}}},
            "leakage": {
                "all": {"share": 0.5, "interval": [0.4, 0.6], "n": 10},
                "clone": {"share": 0.25, "interval": [0.125, 0.5], "n": 8},
            },
            "classification": {
                "accuracy": {
                    "en": {"mean": 0.75, "std": 0.0625, "n": 9},
                    "clone": {"mean": 0.5, "std": None, "n": 9},
                    "de": None,
                }
            },
        }
        write_run(output, recipe, slug, records, evaluation)
    records = [{"tokens": t, "perplexity": {"clone": p}} for t, p in ((1000, 80.0), (2000, 70.0), (3000, 75.0))]
    write_run(output, recipe, "only_tgt", records)
    beta = write_run(output, recipe, "prealign_beta25", [records[0]], finished=False)
    by_word = {"clone": {"seen": {"perplexity": 160.0}, "unseen": {"perplexity": 310.0}}}
    write_json(beta / "evaluation-pretrain-step-00000020.json", {"by_word": by_word})
