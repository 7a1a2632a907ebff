"""A recipe on this machine: its settings, kernels, data as the run would read it, schedule and memory."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from prealign_ds.config import KernelSettings, RunSettings
from prealign_ds.doctoring.machine import GIB, Finding, examine
from prealign_ds.model import check_start
from prealign_ds.planning.footprint import Machine, look_at_data, obstacles, stage_memories
from prealign_ds.planning.forecast import forecast_disk, model_costs
from prealign_ds.recipe import check_same_run
from prealign_ds.stream.loader import collate
from prealign_ds.training.engine import read_ds_config
from prealign_ds.training.environment import World
from prealign_ds.training.gpus import GPUS, Gpu
from prealign_ds.training.kernels import Place, choose_kernels
from prealign_ds.training.plan import StagePlan, learning_rate, plan_stages
from prealign_ds.training.run import Run

_SAMPLES = 64
_POINTS = 1000


def usual_kernels() -> Iterator[Finding]:
    """What would be chosen here for a model of GPT-2's kind in bf16 under ZeRO-1, without a recipe."""
    device = torch.device(get_accelerator().device_name())
    on_gpu = device.type == "cuda"
    capability = torch.cuda.get_device_capability() if on_gpu else (0, 0)
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else 0
    place = Place(device.type, capability, True, 1, "", False, GIB, True, memory)
    for line in choose_kernels(KernelSettings(), place)[1]:
        yield Finding("kernels", "ok", line)


def this_gpu() -> Gpu | None:
    """The kind of the GPU that is here; None on a CPU, and where it is not known."""
    if get_accelerator().device_name() != "cuda":
        return None
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
    kinds = [gpu for gpu in GPUS if gpu.device_name in name]
    return min(kinds, key=lambda gpu: abs(gpu.memory_gib - memory), default=None)


def examine_recipe(settings: RunSettings, machine: Machine | None, world_size: int, dry_run: bool) -> list[Finding]:
    """What a run of this recipe would meet; nothing is trained or written.

    Args:
        settings: The recipe.
        machine: GPUs to plan its memory for; None does not.
        world_size: Ranks.
        dry_run: Whether to open the data and build the model, without its memory.
    """
    parts = {"recipe": lambda: _batches(settings, world_size)}
    if dry_run:
        run = None
        try:
            run = Run(settings, World(0, world_size, torch.device(get_accelerator().device_name())))
        except (ValueError, OSError) as error:
            return [
                *examine("recipe", parts["recipe"]),
                Finding("data", "problem", str(error), "mend it, and look again"),
            ]
        parts |= {"model": lambda: _model(run), "data": lambda: _data(run), "schedule": lambda: _schedule(run)}
        if machine is not None:
            parts["memory"] = lambda: _memory(settings, machine)
    return [finding for part, look in parts.items() for finding in examine(part, look)]


def _batches(settings: RunSettings, world_size: int) -> Iterator[Finding]:
    check_same_run(settings)
    read_ds_config(settings.deepspeed)
    for plan in plan_stages(settings, world_size):
        yield Finding(
            plan.name,
            "ok",
            f"{plan.num_steps:,} steps of {plan.batch_tokens:,} tokens on {world_size} rank(s): micro-batch "
            f"{plan.micro_batch_size} x accumulation {plan.accumulation_steps}, {plan.num_tokens:,} tokens in all",
        )


def _model(run: Run) -> Iterator[Finding]:
    settings, start = run.settings, run.settings.model.start_from
    if start is not None:
        check_start(start, run.model_config, run.vocabulary, run.tokenizer)
        yield Finding("start", "ok", f"the model in {start.name} is the recipe's, with the recipe's tokenizer")
    costs = model_costs(settings, run.vocabulary)
    text = f"{settings.model.architecture}, {costs.num_parameters:,} parameters, {run.vocabulary:,} ids in use"
    yield Finding("model", "ok", f"{text}, padded to {run.model_config.vocab_size:,}")
    ds_config = read_ds_config(settings.deepspeed)
    for plan in plan_stages(settings, run.world.size):
        tokens = plan.micro_batch_size * plan.sequence_length
        place = Place.of(
            *(run.world.device, ds_config, run.model_config, tokens),
            word_batches=bool(plan.words_every),
            two_backwards=bool(plan.words_every and settings.log.gradient_cosine_every_steps),
        )
        for line in choose_kernels(settings.kernels, place)[1]:
            yield Finding(f"kernels {plan.name}", "ok", line)
    most, free = forecast_most(settings, run), shutil.disk_usage(_existing(run.dir)).free
    advice = "" if free > most else "make room, or lower checkpoint.keep"
    shown = f"up to {most / GIB:,.2f} GiB of checkpoints and models, {free / GIB:,.1f} GiB free"
    yield Finding("room", "ok" if free > most else "problem", shown, advice)


def forecast_most(settings: RunSettings, run: Run) -> int:
    """Bytes that the run folder will hold at most."""
    machine = Machine(GPUS[0], 1, run.world.size)  # the kind does not matter for a disk
    disk = forecast_disk(settings, machine, model_costs(settings, run.vocabulary))
    return disk.checkpoint * disk.most * len(settings.stages) + disk.model * len(settings.stages)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _data(run: Run) -> Iterator[Finding]:
    """The first samples of each stage, as training reads them, and the first words."""
    for corpus, tokens in zip(run.settings.data.corpora, run.corpora, strict=True):
        yield Finding("corpus", "ok", f"{corpus.name} ({corpus.language}): {tokens.num_tokens:,} tokens")
    for plan in plan_stages(run.settings, run.world.size):
        stream = run.stream(plan.name)
        number = min(_SAMPLES, plan.end_sample - plan.first_sample)
        samples = [stream[plan.first_sample + place] for place in range(number)]
        counts = collate(samples, number, plan.sequence_length).counts
        languages = Counter(sample.language for sample in samples)
        text = ", ".join(f"{name} {count}" for name, count in languages.most_common())
        if counts["num_words"]:
            switched = sum(count for name, count in counts.items() if name.startswith("switched."))
            text += f"; {switched:,} of {counts['num_words']:,} words switched"
            if not switched:
                advice = "codeswitch.ratio, or a table without this text's words; look at its report"
                yield Finding(f"samples {plan.name}", "warning", text, advice)
                continue
        yield Finding(f"samples {plan.name}", "ok", f"the first {number}: {text}")
        if plan.words_every:
            yield _words(run, plan)


def _words(run: Run, plan: StagePlan) -> Finding:
    from prealign_ds.alignment.stage import AlignmentStage

    stage = AlignmentStage(run.table, run.tokenizer, run.settings.align, run.settings.seed)
    stage.layer_weights(run.settings.model.num_layers + 2)
    rows, visits = sum(stage.batch(0).counts), stage.visits(plan.num_word_batches)
    advice = "" if visits >= 10 else "10 or more are advised: raise align.words_per_step or align.budget_share"
    text = f"{len(stage.rows.trained_words):,} in {rows:,} rows a step; each is visited {visits:.1f} times"
    return Finding("words", "ok" if visits >= 10 else "warning", text, advice)


def _schedule(run: Run) -> Iterator[Finding]:
    settings = run.settings
    for plan in plan_stages(settings, run.world.size):
        optimizer = getattr(settings, plan.name).optimizer
        steps = sorted({round(place * (plan.num_steps - 1) / _POINTS) for place in range(_POINTS + 1)})
        rates = {step: learning_rate(optimizer, plan, step * plan.batch_tokens) for step in steps}
        peak = max(steps, key=rates.__getitem__)
        text = f"{rates[0]:.2e} at step 1, {rates[peak]:.2e} at {peak + 1:,}, {rates[steps[-1]]:.2e} at the last"
        yield Finding(f"rates {plan.name}", "ok", text)
        kinds = {"evaluation": settings.evaluation.every_tokens, "checkpoint": settings.checkpoint.every_tokens}
        for kind, every in kinds.items():
            times = plan.num_tokens // every if every else 0
            often = f"every {every / plan.batch_tokens:,.1f} steps ({times} times) and " if every else ""
            yield Finding(f"{kind}s {plan.name}", "ok", f"{often}at the end")


def _memory(settings: RunSettings, machine: Machine) -> Iterator[Finding]:
    memories = stage_memories(settings, machine, look_at_data(settings))
    for memory in memories:
        text = f"{memory.needed / GIB:.1f} of {machine.gpu.memory_gib:.1f} GiB of each {machine.gpu.name}"
        yield Finding(f"memory {memory.plan.name}", "ok", text)
    for obstacle in obstacles(settings, machine, memories):
        yield Finding("memory", "problem", obstacle, "tools/plan.py prints overrides that fit")
