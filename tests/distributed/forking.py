"""Programs whose processes are forked from one that has imported what they all need.

Usage: forking.py RANKS SCRIPT [ARGUMENT ...]    one program on so many ranks; if one fails, the others are killed
       forking.py each JOBS.json                 each [ranks, script, argument, ...] in turn; the file gets the outcomes

Most of a short run's time is the import of libraries, which each rank and twice the deepspeed launcher would do again.
What is forked is a process of its own, and the program begins in it with its __main__ as ever.
"""

import json
import os
import runpy
import signal
import socket
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]


def run(ranks, script, arguments, outputs=()):
    """Run the program as a launcher does; returns its exit code. What is forked does not return."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    world = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"), str(ranks))
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running, code = set(), 0
    for rank in map(str, range(ranks)):
        child = os.fork()
        if not child:
            for number, file in enumerate(outputs, 1):
                os.dup2(file.fileno(), number)
            os.environ.update(world | {"RANK": rank, "LOCAL_RANK": rank})
            sys.argv, sys.path[0] = [script, *arguments], str(Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")
            sys.exit()
        running.add(child)
    while running:
        child, status = os.wait()
        running.discard(child)
        found = os.waitstatus_to_exitcode(status)
        if found and not code:
            code = found
            for other in running:
                os.kill(other, signal.SIGKILL)
    return code


def run_each(file):
    """The file's jobs are replaced by [exit code, stdout, stderr] of each."""
    done = []
    for ranks, script, *arguments in json.loads(file.read_text()):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = run(ranks, script, arguments, (out, err))
            done.append([code, *(stream.seek(0) or stream.read() for stream in (out, err))])
    file.write_text(json.dumps(done))


if __name__ == "__main__":
    import prealign_ds.training.loop
    import prealign_ds.training.run  # noqa: F401

    how, what, *rest = sys.argv[1:]
    if how == "each":
        run_each(Path(what))
    else:
        sys.exit(abs(run(int(how), what, rest)))
