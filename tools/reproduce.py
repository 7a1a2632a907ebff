"""Every table and figure of the paper, from one command.

    python tools/reproduce.py --preset micro --output runs/micro                2 CPU cores, about 2 hours
    python tools/reproduce.py --preset small --output runs/small                one GPU, hours
    python tools/reproduce.py --preset paper-150m --output runs/paper-150m      writes the jobs for a SLURM cluster
    python tools/reproduce.py --preset paper-150m --output runs/paper-150m --report-only

OUTPUT gets runs/, logs/, times.json, and at the end results.json, report.html and the figures as PNG files. What is
done is not done again: stop the command whenever you like (Ctrl-C or SIGTERM saves first), and give it again.
--report-only reports on what is done until now. --preset also takes the file of a preset of your own; the shipped ones
are in launchers/presets/.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prealign_ds.cli import run


def main() -> None:
    """Parse the command line, check, run every job, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help="micro, small, paper-150m, paper-400m, paper-1.3b, or a file")
    parser.add_argument("--output", type=Path, required=True, help="folder of the reproduction")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report on what is done")
    arguments = parser.parse_args()

    from prealign_ds.reproduction.jobs import all_jobs
    from prealign_ds.reproduction.machine import deepspeed_command, fitting_ds_config
    from prealign_ds.reproduction.preset import check, load_preset
    from prealign_ds.reproduction.report import write_report
    from prealign_ds.reproduction.runner import run_jobs
    from prealign_ds.reproduction.slurm import write_jobs

    preset, output = load_preset(arguments.preset), arguments.output
    for name, experiment in preset.experiments.items():
        for path in experiment.missing():
            print(f"{name}: left out, {path} is not there", flush=True)
    if not arguments.report_only:
        more = [fitting_ds_config()] if preset.launch == "local" else []
        check(preset, output, more)
        if preset.launch == "slurm":
            commands = "\n".join(f"  {command}" for command in write_jobs(preset, output))
            print(f"Jobs written. Give these commands, and when all is done this one with --report-only:\n{commands}")
            return
        launcher = partial(deepspeed_command, preset.ranks)
        run_jobs(all_jobs(preset, output, launcher, more), output, preset.at_once)
    write_report(arguments.preset, preset, output)
    print(f"{output}/results.json and {output}/report.html written")


if __name__ == "__main__":
    run(main)
