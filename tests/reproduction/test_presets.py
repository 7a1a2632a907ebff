"""Every shipped preset and system parses and is checked before anything runs; the jobs they become."""

import json
import shlex
import subprocess

import pytest
from conftest import REPOSITORY
from made_up import CLONE_SYSTEMS, write_preset

from prealign_ds.recipe import dump_settings, load_settings
from prealign_ds.reproduction.jobs import all_jobs
from prealign_ds.reproduction.preset import PRESETS, check, load_preset
from prealign_ds.reproduction.slurm import write_jobs
from prealign_ds.reproduction.systems import SYSTEMS
from prealign_ds.training.plan import plan_stages

NAMES = ("micro", "paper-1.3b", "paper-150m", "paper-400m", "small")
SLUGS = (
    "joint prealign joint_cs init_only only_tgt full_tgt prealign_vanilla_cs prealign_beta25 prealign_beta50 "
    "prealign_beta75 perfect"
).split()


def shipped(name, monkeypatch):
    """A preset with all its experiments, whether their dictionaries are here or not."""
    monkeypatch.chdir(REPOSITORY)
    preset = load_preset(name)
    for experiment in preset.experiments.values():
        experiment.needs = []
    return preset


@pytest.mark.parametrize("name", NAMES)
def test_every_system_of_every_preset_passes_the_checks(name, tmp_path, monkeypatch):
    preset = shipped(name, monkeypatch)
    assert sorted(path.stem for path in PRESETS.glob("*.yaml")) == list(NAMES)
    check(preset, tmp_path, [])
    assert preset.en_clone.systems == SLUGS == list(SYSTEMS) and preset.real.systems == ["joint", "prealign"]
    for experiment in preset.experiments.values():
        settings = load_settings(experiment.recipe, experiment.overrides)
        facts, stage_1 = settings.knowledge, plan_stages(settings, preset.nodes * preset.ranks)[0].num_tokens
        rest = stage_1 if name == "micro" else 0  # there the first facts wait until the model has read as much again
        assert 0 <= facts.start_tokens - stage_1 - rest < 0.01 * settings.lm_tokens, "periods begin where stage 1 ends"
        steps = 400 if name == "micro" else 250
        assert facts.period_tokens == steps * settings.pretrain.batch_tokens


def test_systems_of_one_language_read_it_alone(monkeypatch):
    recipe = shipped("micro", monkeypatch).en_clone.recipe
    found = {slug: load_settings(recipe, SYSTEMS[slug].overrides(load_settings(recipe))) for slug in SYSTEMS}
    for slug, split in (("only_tgt", "clone"), ("full_tgt", "train")):
        (corpus,) = found[slug].data.corpora
        assert (corpus.language, corpus.clone, corpus.split) == ("clone", True, split)
        assert [text.language for text in found[slug].data.held_out] == ["clone"]
        assert found[slug].table is found[slug].knowledge is None and found[slug].stages == ["pretrain"]
    assert found["prealign"] == load_settings(recipe)
    assert found["joint"].knowledge == found["prealign"].knowledge, "told the same facts at the same tokens"
    assert found["prealign_vanilla_cs"].codeswitch.mode == "vanilla" and found["perfect"].model.perfect_alignment
    assert [found[f"prealign_beta{share}"].table.top_share for share in (25, 50, 75)] == [0.25, 0.5, 0.75]
    assert len({settings.lm_tokens for settings in found.values()}) == 1


def test_a_page_and_its_translations_are_on_one_side(monkeypatch):
    """The split of a page depends on its name, the seed and the shares."""
    commands = [shlex.split(command) for command in shipped("micro", monkeypatch).real.prepare if "fetch" in command]
    splits = {tuple(words[words.index(option) + 1] for option in ("--splits", "--seed")) for words in commands}
    assert len(commands) == 5 and len(splits) == 1


def test_one_language_needs_en_clone(monkeypatch):
    real = shipped("micro", monkeypatch).real
    with pytest.raises(ValueError, match="only_tgt: the recipe has no En-Clone corpus"):
        SYSTEMS["only_tgt"].overrides(load_settings(real.recipe))


def test_jobs_prepare_once_then_train_and_measure_each_system(tmp_path, monkeypatch):
    preset = shipped("micro", monkeypatch)
    jobs = all_jobs(preset, tmp_path, lambda: ["deepspeed"], ["deepspeed=x.json"])
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names) and names.count("prepare data/micro/topics") == 1
    assert names.index("prepare data/micro/clone.parquet") < names.index("train en_clone joint")
    measure = jobs[names.index("evaluate en_clone init_only")]
    assert measure.words[:6] == "deepspeed launchers/evaluate.py --only perplexity classification --model".split()
    assert measure.keys == ("perplexity", "classification") and measure.words[-1] == "deepspeed=x.json"
    assert not any("leakage" in word for word in measure.words)
    baseline = jobs[names.index("baseline en_clone prealign_beta50")]
    beta, joint = (tmp_path / "runs/en_clone" / slug for slug in ("prealign_beta50", "joint"))
    checkpoint = f"{joint}/checkpoints/pretrain/step-00002400"
    assert baseline.words[1:7] == ["launchers/evaluate.py", "--only", "perplexity", "--model", checkpoint, str(beta)]
    assert baseline.makes == beta / "evaluation-pretrain-step-00002400.json"
    train = jobs[names.index("train real joint")]
    assert train.makes == tmp_path / "runs/real/joint/model" and f"run_dir={train.makes.parent}" in train.words


def test_an_experiment_without_its_files_is_left_out(tmp_path):
    preset = load_preset(str(write_preset(tmp_path)))
    check(preset, tmp_path / "out", [])
    names = [job.name for job in all_jobs(preset, tmp_path / "out", list, [])]
    assert [name for name in names if name.startswith("train")] == [f"train en_clone {slug}" for slug in CLONE_SYSTEMS]
    (tmp_path / "en-de.tsv").touch()
    assert "train real joint" in [job.name for job in all_jobs(preset, tmp_path / "out", list, [])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ["jont"]}, "systems: jont unknown; there are joint, prealign"),
        ({"overrides": ["seed 5"]}, "write an override as dotted.key=value without spaces"),
        ({"prepare": ["tools/any.py"]}, "prepare: 'tools/any.py': has no --output"),
        ({"prepare": []}, r"en_clone, joint: \S+tokenizer is missing, and no step of the preset's prepare makes it"),
        ({"overrides": ["data.held_out=[]"]}, "data.held_out has no clone text to measure perplexity on"),
        (
            {"overrides": ["pretrain.batch_tokens=100"]},
            "batch_tokens: 100 is not a multiple of data.sequence_length 32",
        ),
        ({"overrides": ["knowledge.period_tokens=9600"]}, "no period ends within lm_tokens"),
        (
            {"overrides": ["knowledge.period_tokens=960", "knowledge.directions=[en->de]"]},
            "knowledge.directions: 'en->de': no corpus in de",
        ),
        (
            {"evaluate": ["evaluation.classification.train=a.tsv", "evaluation.classification.test.de=b.tsv"]},
            "evaluation.classification.test.de: no corpus in de; remove it",
        ),
        (
            {"evaluate": ["evaluation.classification.train=a.tsv", "evaluation.classification.test.en=b.tsv"]},
            "en_clone, joint: a.tsv is missing",
        ),
        ({"repeat": 2}, "en_clone.repeat: unknown key"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, changes, message):
    path = write_preset(tmp_path)
    values = json.loads(path.read_text())
    values["en_clone"] |= changes
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        check(load_preset(str(path)), tmp_path / "out", [])


def test_a_folder_with_another_run_and_an_unknown_preset_are_refused(tmp_path, monkeypatch):
    preset = load_preset(str(write_preset(tmp_path)))
    folder = tmp_path / "out/runs/en_clone/joint"
    folder.mkdir(parents=True)
    overrides = [*preset.en_clone.run_overrides("joint"), f"run_dir={folder}", "seed=7"]
    (folder / "config.yaml").write_text(dump_settings(load_settings(preset.en_clone.recipe, overrides)))
    with pytest.raises(ValueError, match="holds a run with other settings:\n  seed: 7 there, 5 now"):
        check(preset, tmp_path / "out", [])
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(ValueError, match="--preset huge: .* there are micro, paper-1.3b, paper-150m"):
        load_preset("huge")


def test_a_cluster_gets_job_arrays(tmp_path, monkeypatch):
    preset = shipped("paper-1.3b", monkeypatch)
    commands = write_jobs(preset, tmp_path / "out")
    folder = tmp_path / "out/jobs"
    assert commands == [
        f"bash {folder}/prepare.sh",
        f"job=$(sbatch --parsable {folder}/train.sbatch)",
        f"sbatch --dependency=afterany:$job {folder}/evaluate.sbatch",
    ]
    for kind, tasks in (("train", 13), ("evaluate", 16)):
        text = (folder / f"{kind}.sbatch").read_text()
        assert f"#SBATCH --array=1-{tasks}\n" in text and "#SBATCH --nodes=4\n" in text
    done = subprocess.run(["bash", folder / "train.sbatch", "--dry-run"], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ srun")]
    assert len(lines) == 13 and all(line.endswith("world_size=32") and "--nodes=4" in line for line in lines)
    assert f"run_dir={tmp_path}/out/runs/real/prealign" in lines[-1]
    full = next(line for line in lines if "/full_tgt" in line)
    assert '"path":"data/en/tokens","language":"clone","split":"train"' in full, "quotes reach the launcher"
    subprocess.run(["bash", "-n", folder / "prepare.sh"], check=True)
    assert (folder / "prepare.sh").read_text().count(" || python tools/") == len(
        {command for experiment in preset.experiments.values() for command in experiment.prepare}
    )


def test_a_space_in_a_path_cannot_go_into_a_list(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="a space would end this word"):
        write_jobs(shipped("paper-150m", monkeypatch), tmp_path / "my runs")
