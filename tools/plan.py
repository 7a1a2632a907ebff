"""What a run will need, before it is queued: memory of each GPU, time, traffic, disk.

    python tools/plan.py RECIPE.yaml [dotted.key=value ...] --gpus H100 --nodes 4 --gpus-per-node 8
    python tools/plan.py RECIPE.yaml --gpus A100-40 --json

It needs no GPU, and no data: where tokenizer or table do not exist yet, it says what it assumed. Exit code 2: it does
not fit; then it prints what does, as words to append to the command.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed then logs: what this prints is read by programs too
    from prealign_ds.cli import run
    from prealign_ds.config import RunSettings
    from prealign_ds.planning.footprint import (
        CONTEXT_BYTES,
        FRAGMENTATION,
        GIB,
        Data,
        Machine,
        StageMemory,
        look_at_data,
        obstacles,
        stage_memories,
    )
    from prealign_ds.planning.forecast import StageForecast, forecast_disk, forecast_stages, model_costs
    from prealign_ds.planning.proposals import Proposal, propose
    from prealign_ds.planning.zero import read_engine
    from prealign_ds.recipe import load_settings
    from prealign_ds.training.gpus import GPUS, gpu_named

_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "alignment", "buffers")


def main() -> None:
    """Parse, plan, print; refuse what does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file, see launchers/recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted.key=value, as for pretrain.py")
    parser.add_argument("--gpus", required=True, metavar="KIND", help=", ".join(gpu.name for gpu in GPUS))
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--network", type=float, metavar="GB/s", help="of each GPU between nodes (default: the kind's)")
    parser.add_argument("--vocab-size", type=int, help="tokens of the tokenizer, where it does not exist yet")
    parser.add_argument("--json", action="store_true", help="figures in bytes, FLOPs and seconds")
    arguments = parser.parse_intermixed_args()
    if arguments.nodes < 1 or arguments.gpus_per_node < 1:
        raise ValueError("--nodes, --gpus-per-node: give 1 or more")
    settings = load_settings(arguments.recipe, arguments.overrides)
    machine = Machine(gpu_named(arguments.gpus), arguments.nodes, arguments.gpus_per_node)
    data = look_at_data(settings, arguments.vocab_size)
    memories = stage_memories(settings, machine, data)
    reasons = obstacles(settings, machine, memories)
    proposals = propose(settings, machine, data) if reasons else []
    network = arguments.network * 1e9 if arguments.network else None
    report = plan(settings, machine, data, memories, network)
    report |= {"fits": not reasons, "reasons": reasons, "proposals": [_as_words(p, machine) for p in proposals]}
    print(json.dumps(report, indent=2) if arguments.json else page(report))
    if reasons:
        raise ValueError("\n  ".join(["it does not fit:", *reasons]))


def plan(
    settings: RunSettings, machine: Machine, data: Data, memories: list[StageMemory], network: float | None
) -> dict[str, Any]:
    """All figures: bytes, FLOPs, seconds."""
    costs, engine = model_costs(settings, data.vocabulary), read_engine(settings.deepspeed)
    forecasts = forecast_stages(settings, machine, data, costs, network)
    disk, states = forecast_disk(settings, machine, costs), memories[0].states
    precision = "fp16" if engine.fp16 else "bf16" if engine.weight_bytes == 2 else "fp32"
    return {
        "machine": {
            "gpus": machine.gpu.name,
            "nodes": machine.nodes,
            "gpus_per_node": machine.gpus_per_node,
            "memory": round(machine.gpu.memory_gib * GIB),
        },
        "engine": {
            "file": str(settings.deepspeed),
            "zero_stage": engine.stage,
            "precision": precision + (" with bf16 autocast" if engine.autocast else ""),
        },
        "model": {
            "parameters": costs.num_parameters,
            "block_parameters": costs.num_block_parameters,
            "vocabulary": data.vocabulary,
            "flops_per_token": costs.flops_per_token,
        },
        "stages": {m.plan.name: _stage(m, f) for m, f in zip(memories, forecasts, strict=True)},
        "host_memory_per_node": machine.gpus_per_node * max(states.host, 4 * costs.num_parameters),
        "host_disk_per_node": machine.gpus_per_node * states.disk,
        "disk": {"checkpoint": disk.checkpoint, "checkpoints_at_once": disk.most, "model": disk.model},
        "hours": [sum(forecast.hours[end] for forecast in forecasts) for end in (0, 1)],
        "assumptions": _assumptions(settings, machine, data, network),
    }


def _stage(memory: StageMemory, forecast: StageForecast) -> dict[str, Any]:
    plan = memory.plan
    return {
        "steps": plan.num_steps,
        "tokens": plan.num_tokens,
        "batch_tokens": plan.batch_tokens,
        "micro_batch_size": plan.micro_batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "lm_loss": memory.lm_loss,
        "memory": memory.parts,
        "after_backward": memory.states.after_backward,
        "evaluation": memory.evaluation,
        "memory_needed": memory.needed,
        "step_flops": forecast.lm_flops + forecast.word_flops,
        "recomputed_flops": forecast.recomputed_flops,
        "word_share": forecast.word_share,
        "word_visits": forecast.visits,
        "step_seconds": forecast.step_seconds,
        "tokens_per_s": forecast.tokens_per_s,
        "hours": forecast.hours,
        "traffic": forecast.traffic,
        "traffic_seconds": forecast.traffic_seconds,
    }


def _assumptions(settings: RunSettings, machine: Machine, data: Data, network: float | None) -> list[str]:
    gpu = machine.gpu
    low, high = gpu.mfu
    reached = f"{low:.0%} to {high:.0%} of {gpu.peak_flops / 1e12:,.0f} TFLOP/s (published for others' code)"
    links = f"{gpu.link / 1e9:.0f} GB/s between GPUs of a node"
    if machine.nodes > 1:
        links += f", {(network or gpu.network) / 1e9:.0f} GB/s of each GPU between nodes"
    return [
        *data.assumptions,
        f"MFU {reached}; the slow end adds the traffic's time, the fast end hides it",
        f"nominal bandwidth: {links}",
        f"{CONTEXT_BYTES / GIB:.1f} GiB of CUDA context and NCCL, {FRAGMENTATION:.0%} lost by the allocator",
        "AdamW is a fused kernel; torch.compile, which saves activations, is not counted",
        "checkpoints, evaluations and data loading take no time",
    ]


def _as_words(proposal: Proposal, machine: Machine) -> dict[str, Any]:
    words = list(proposal.overrides)
    if proposal.machine.nodes != machine.nodes:
        words.append(f"--nodes {proposal.machine.nodes}")
    return {"append": " ".join(words), "memory_needed": proposal.needed}


def page(report: dict[str, Any]) -> str:
    """The figures for people."""
    machine, engine, model = report["machine"], report["engine"], report["model"]
    stages, disk = report["stages"], report["disk"]
    lines = [
        f"{machine['nodes']} node(s) x {machine['gpus_per_node']} {machine['gpus']}, {engine['file']} "
        f"(ZeRO {engine['zero_stage']}, {engine['precision']})",
        f"{model['parameters']:,} parameters, {model['block_parameters']:,} of them in the blocks; vocabulary "
        f"{model['vocabulary']:,}; {model['flops_per_token'] / 1e9:.2f} GFLOPs a token",
        "",
        *_memory_table(stages, machine),
        f"  host memory of each node {report['host_memory_per_node'] / GIB:,.1f} GiB (ranks start with fp32 models)"
        + (f", disk {report['host_disk_per_node'] / GIB:,.1f} GiB" if report["host_disk_per_node"] else ""),
        "",
        *_cost_table(stages),
        f"  {report['hours'][0]:,.1f} to {report['hours'][1]:,.1f} hours in all",
        "",
        f"Disk: {disk['checkpoint'] / 1e9:,.1f} GB a checkpoint, up to {disk['checkpoints_at_once']} at once a stage; "
        f"{disk['model'] / 1e9:,.1f} GB a final model",
        "",
        "It fits." if report["fits"] else "It does not fit.",
    ]
    if not report["fits"]:
        lines += ["These fit; append to the command:" if report["proposals"] else "Nothing that was tried fits either."]
        lines += [f"  {p['append']:90} {p['memory_needed'] / GIB:6.1f} GiB" for p in report["proposals"]]
    return "\n".join([*lines, "", "Assumed:", *(f"  - {line}" for line in report["assumptions"])])


def _row(name: str, values: list[str]) -> str:
    return f"  {name:44}" + "".join(f"{value:>20}" for value in values)


def _memory_table(stages: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    def gib(values: list[int]) -> list[str]:
        return [f"{value / GIB:.2f}" for value in values]

    found = list(stages.values())
    return [
        _row("GiB of each GPU", list(stages)),
        *(_row(part, gib([stage["memory"][part] for stage in found])) for part in _PARTS),
        _row("or, after the backward, for the last four", gib([stage["after_backward"] for stage in found])),
        _row("or, evaluating", gib([stage["evaluation"] for stage in found])),
        _row("needed, with context and loss", gib([stage["memory_needed"] for stage in found])),
        _row("there", gib([machine["memory"]] * len(found))),
    ]


def _cost_table(stages: dict[str, Any]) -> list[str]:
    def ends(pair: tuple[float, float], scale: float, form: str) -> str:
        return " to ".join(f"{value / scale:{form}}" for value in pair)

    def each(function: Any) -> list[str]:
        return [function(stage) for stage in stages.values()]

    visited = any(stage["word_visits"] for stage in stages.values())
    return [
        _row("cost", list(stages)),
        _row("steps", each(lambda s: f"{s['steps']:,}")),
        _row("LM tokens", each(lambda s: f"{s['tokens']:,}")),
        _row("micro-batch x accumulation", each(lambda s: f"{s['micro_batch_size']} x {s['accumulation_steps']}")),
        _row("LM loss", each(lambda s: s["lm_loss"])),
        _row("PFLOPs of a step", each(lambda s: f"{s['step_flops'] / 1e15:.2f}")),
        _row("  and recomputed", each(lambda s: f"{s['recomputed_flops'] / 1e15:.2f}")),
        _row("  of words, %", each(lambda s: f"{100 * s['word_share']:.1f}")),
        *([_row("visits to a word", each(lambda s: f"{s['word_visits'] or 0:.1f}"))] if visited else []),
        _row("GB that a GPU sends in a step", each(lambda s: f"{sum(s['traffic'].values()) / 1e9:.2f}")),
        _row("  its seconds", each(lambda s: f"{s['traffic_seconds']:.3f}")),
        _row("seconds of a step", each(lambda s: ends(s["step_seconds"], 1, ".2f"))),
        _row("thousand tokens/s", each(lambda s: ends(s["tokens_per_s"], 1e3, ",.0f"))),
        _row("hours", each(lambda s: ends(s["hours"], 1, ",.1f"))),
    ]


if __name__ == "__main__":
    run(main)
