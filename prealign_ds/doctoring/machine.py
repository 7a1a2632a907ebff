"""The machine: versions, accelerator, compilers, ways between ranks, disk, limits; each with what to do about it."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from packaging.requirements import Requirement
from torch.utils.cpp_extension import CUDA_HOME

from prealign_ds.training.environment import free_port, use_own_ninja

GIB = 2**30
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_VARIABLES = ("OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "LD_PRELOAD", "NCCL_SOCKET_IFNAME")
_FORGETFUL = ("tmpfs", "ramfs", "overlay")  # what such a file system holds may end with the machine or the container


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
        part: What was looked at.
        status: ``problem`` is what training would fail at.
        text: What was found.
        advice: What to do, where it is not ``ok``.
    """

    part: str
    status: Literal["ok", "warning", "problem"]
    text: str
    advice: str = ""


def examine(part: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What ``look`` finds; a mistake that a person can mend is a problem of this part."""
    found = []
    try:
        for finding in look():
            found.append(finding)
    except (ValueError, OSError, RuntimeError) as error:
        first, *rest = str(error).splitlines() or [type(error).__name__]
        found.append(Finding(part, "problem", first, " ".join(line.strip() for line in rest)))
    return found


def examine_machine(run_dir: Path) -> list[Finding]:
    """Everything that does not depend on a recipe, but for the disk of its ``run_dir``."""
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "accelerator": accelerator,
        "compilers": compilers,
        "ranks": ranks,
        "disk": lambda: disk(run_dir),
        "process": process,
    }
    return [finding for part, look in parts.items() for finding in examine(part, look)]


def versions() -> Iterator[Finding]:
    """Python and every package of pyproject.toml, within its range or not."""
    text = _PYPROJECT.read_text(encoding="utf-8") if _PYPROJECT.is_file() else ""
    wanted = re.findall(r'^    "([^"]+)",$', text.partition("\ndependencies = [")[2].partition("\n]")[0], re.MULTILINE)
    wanted = wanted or [line for line in metadata.requires("prealign-ds") or [] if "extra ==" not in line]
    old = sys.version_info < (3, 10)
    yield Finding("python", "problem" if old else "ok", platform.python_version(), "use 3.10 or newer" if old else "")
    for requirement in map(Requirement, wanted):
        advice = f'pip install "{requirement}"'
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, "problem", "not installed", advice)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        shown = f"{version} ({requirement.specifier})"
        yield Finding(requirement.name, "ok" if fits else "problem", shown, "" if fits else advice)


def accelerator() -> Iterator[Finding]:
    """What computes, and the memory it has."""
    device = get_accelerator()
    if device.device_name() != "cpu":
        for number in range(device.device_count()):
            name, memory = torch.cuda.get_device_name(number), device.total_memory(number)
            yield Finding("accelerator", "ok", f"{device.device_name(number)}: {name}, {memory / GIB:.1f} GiB")
        return
    cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shown = f"CPU, {cores} core(s), {memory / GIB:.1f} GiB"
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        advice = f"there is an NVIDIA driver: install PyTorch for CUDA (this is {torch.__version__}), or ask for a GPU"
        yield Finding("accelerator", "warning", shown, advice)
    else:
        yield Finding("accelerator", "ok", shown)


def compilers() -> Iterator[Finding]:
    """What DeepSpeed compiles its operators with at its first start."""
    use_own_ninja()
    on_gpu = get_accelerator().device_name() == "cuda"
    for name, needed in (("g++", True), ("ninja", True), ("nvcc", on_gpu)):
        path = shutil.which(name) or (CUDA_HOME and shutil.which(name, path=f"{CUDA_HOME}/bin"))
        if path or not needed:
            yield Finding(name, "ok", path or "none; only GPUs need it")
        elif name == "nvcc":
            advice = "DeepSpeed's FusedAdam cannot be compiled, PyTorch's is used; set CUDA_HOME, or load a module"
            yield Finding(name, "warning", "not found", advice)
        else:
            advice = "pip install ninja" if name == "ninja" else "install a C++ compiler (Debian: apt install g++)"
            yield Finding(name, "problem", "not found", advice)


def ranks() -> Iterator[Finding]:
    """The launcher, SLURM, and whether a group of this process alone can be made and reduces."""
    launcher = shutil.which("deepspeed")
    beside = Path(sys.executable).parent / "deepspeed"
    advice = f"put {beside.parent} on the PATH" if beside.is_file() else "pip install deepspeed"
    yield Finding(
        "launcher", "ok" if launcher else "warning", launcher or "not on the PATH", "" if launcher else advice
    )
    job = {
        name: value
        for name, value in os.environ.items()
        if re.fullmatch(r"SLURM_(JOB_ID|NNODES|NTASKS|NODELIST)", name)
    }
    shown = ", ".join(f"{name}={value}" for name, value in sorted(job.items())) or "not in a job"
    yield Finding("slurm", "ok", f"{shown}; sinfo {'is' if shutil.which('sinfo') else 'is not'} on the PATH")
    backend = "nccl" if get_accelerator().device_name() == "cuda" else "gloo"
    if dist.is_initialized():
        yield Finding("backend", "ok", f"{dist.get_backend()}, a group of {dist.get_world_size()} is there")
        return
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        dist.all_reduce(torch.ones(1, device="cuda" if backend == "nccl" else "cpu"))
    finally:
        dist.destroy_process_group()
    yield Finding("backend", "ok", f"{backend}, a group was made and reduced")


def disk(run_dir: Path) -> Iterator[Finding]:
    """Room and kind of file system where a run would write."""
    folder = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.is_dir())
    kind, free = file_system(folder), shutil.disk_usage(folder).free
    shown = f"{free / GIB:,.1f} GiB free at {folder} ({kind})"
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "problem", f"{shown}, not writable", "choose another run_dir, or change its rights")
    elif free < GIB:
        yield Finding("disk", "problem", shown, "make room; a checkpoint takes up to 14 bytes for each parameter")
    elif kind in _FORGETFUL:
        yield Finding("disk", "warning", shown, "this may be lost with the container or machine; prefer a real disk")
    else:
        yield Finding("disk", "ok", shown)


def file_system(folder: Path) -> str:
    """The type of the file system that holds ``folder``."""
    lines = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    places = [(line[1].replace("\\040", " "), line[2]) for line in lines]
    own = [(place, kind) for place, kind in places if folder.resolve().is_relative_to(place)]
    return max(own, key=lambda item: len(item[0]))[1] if own else "unknown"


def process() -> Iterator[Finding]:
    """Threads, allocator, open files, shared memory."""
    settings = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    threads = (
        f"{torch.get_num_threads()} PyTorch thread(s); {', '.join(settings) or 'no variable changes the allocator'}"
    )
    yield Finding("threads", "ok", threads)
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"ulimit -n {min(most, 65536)}" if most > 4096 else "ask for a higher hard limit"
    yield Finding("open files", "ok" if files >= 1024 else "warning", f"{files}", "" if files >= 1024 else advice)
    shared = Path("/dev/shm")
    size = shutil.disk_usage(shared).free / GIB if shared.is_dir() else 0.0
    advice = "ranks of one machine reduce in it: start the container with --shm-size=8g"
    yield Finding("/dev/shm", "ok" if size >= 0.5 else "warning", f"{size:.1f} GiB free", "" if size >= 0.5 else advice)
