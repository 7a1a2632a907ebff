"""Is this machine ready, and this recipe? One page; nothing is trained or written.

    python tools/doctor.py                                                    the machine
    python tools/doctor.py RECIPE.yaml [dotted.key=value ...]                 and the recipe's settings
    python tools/doctor.py RECIPE.yaml --dry-run [--gpus H100 --gpus-per-node 8 --nodes 4]
                                                                              and its data, schedule, kernels, memory

Each line is ok, a warning or a problem, with what to do. Exit code 1: there are problems. --json is for programs.
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed then logs
    from deepspeed.accelerator import get_accelerator

    from prealign_ds.cli import run
    from prealign_ds.doctoring.machine import Finding, examine, examine_machine
    from prealign_ds.doctoring.recipe import examine_recipe, this_gpu, usual_kernels
    from prealign_ds.planning.footprint import Machine
    from prealign_ds.recipe import load_settings
    from prealign_ds.training.gpus import GPUS, gpu_named


def main() -> None:
    """Parse, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", help="YAML file, see launchers/recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted.key=value, as for pretrain.py")
    parser.add_argument("--dry-run", action="store_true", help="open the data, build the model without its memory")
    parser.add_argument("--gpus", metavar="KIND", help=f"plan memory for these: {', '.join(g.name for g in GPUS)}")
    parser.add_argument("--gpus-per-node", type=int, help="ranks of a node; default those that are here")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_intermixed_args()
    if arguments.nodes < 1 or (arguments.gpus_per_node or 1) < 1:
        raise ValueError("--nodes, --gpus-per-node: give 1 or more")
    if arguments.recipe is None and (arguments.dry_run or arguments.gpus):
        raise ValueError("--dry-run, --gpus: name a recipe")
    gpu = gpu_named(arguments.gpus) if arguments.gpus else this_gpu()
    with contextlib.redirect_stdout(sys.stderr):
        findings, settings = [], None
        if arguments.recipe is not None:
            try:
                settings = load_settings(arguments.recipe, arguments.overrides)
            except (ValueError, OSError) as error:
                findings.append(Finding("recipe", "problem", str(error), "mend it, and look again"))
        findings = examine_machine(settings.run_dir if settings else Path(".")) + findings
        if not (settings and arguments.dry_run):
            findings += examine("kernels", usual_kernels)
        if settings is not None:
            here = get_accelerator().device_count() if get_accelerator().device_name() != "cpu" else 1
            per_node = arguments.gpus_per_node or (settings.world_size or here * arguments.nodes) // arguments.nodes
            machine = Machine(gpu, arguments.nodes, per_node) if gpu else None
            findings += examine_recipe(settings, machine, arguments.nodes * per_node, arguments.dry_run)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        print(page(findings))
    sys.exit(int(any(finding.status == "problem" for finding in findings)))


def page(findings: list[Finding]) -> str:
    """The findings for people, problems again at the end."""
    lines = [_line(finding) for finding in findings]
    count = Counter(finding.status for finding in findings)
    lines += ["", f"{count['problem']} problem(s), {count['warning']} warning(s)"]
    return "\n".join(lines + [_line(finding) for finding in findings if finding.status == "problem"])


def _line(finding: Finding) -> str:
    advice = f"\n{'':28}-> {finding.advice}" if finding.advice else ""
    return f"{finding.status:8} {finding.part:18} {finding.text}{advice}"


if __name__ == "__main__":
    run(main)
