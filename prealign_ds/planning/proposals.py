"""Changes to a run that does not fit, each tried by the same arithmetic before it is proposed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from prealign_ds.config import RunSettings
from prealign_ds.planning.footprint import Data, Machine, obstacles, same_precision, stage_memories
from prealign_ds.planning.zero import read_engine

_MOST_NODES = 8


@dataclass(frozen=True)
class Proposal:
    """A run that fits.

    Attributes:
        overrides: What to append to the command line.
        machine: Where it then runs.
        needed: Bytes of a GPU that it needs, in the stage that needs most.
    """

    overrides: tuple[str, ...]
    machine: Machine
    needed: int


def propose(settings: RunSettings, machine: Machine, data: Data, most: int = 4) -> list[Proposal]:
    """Up to ``most`` ways to make a run fit, small changes first, each with the largest micro-batch that it allows.

    Args:
        settings: A configuration that does not fit.
        machine: Where it should run.
        data: From ``footprint.look_at_data``.
        most: Proposals to find.
    """
    found: list[Proposal] = []
    for overrides, where in _ways(settings, machine):
        proposal = _largest_that_fits(settings, overrides, where, data)
        # Where the chunked loss is the choice anyway, naming it needs the same memory to the byte.
        if proposal is not None and all((p.machine, p.needed) != (where, proposal.needed) for p in found):
            found.append(proposal)
        if len(found) == most:
            break
    return found


def _ways(settings: RunSettings, machine: Machine) -> Iterator[tuple[tuple[str, ...], Machine]]:
    engine = read_engine(settings.deepspeed)
    configs = same_precision(settings.deepspeed.parent, machine.gpu, engine)
    own = [path for path in configs if path.resolve() == settings.deepspeed.resolve()]
    others = configs[configs.index(own[0]) + 1 :] if own else configs
    savings: list[tuple[str, ...]] = [()]
    if settings.kernels.lm_loss in ("auto", "plain", "compiled"):
        savings.append(("kernels.lm_loss=chunked",))
    if not settings.model.activation_checkpointing:
        savings += [(*saving, "model.activation_checkpointing=true") for saving in tuple(savings)]
    engines = [()] if own else []
    for config in (*engines, *((f"deepspeed={path}",) for path in others)):
        for saving in savings:
            yield (*config, *saving), machine
    nodes = machine.nodes
    while nodes < _MOST_NODES and own:
        nodes *= 2
        yield (), replace(machine, nodes=nodes)


def _largest_that_fits(
    settings: RunSettings, overrides: tuple[str, ...], machine: Machine, data: Data
) -> Proposal | None:
    size = max(getattr(settings, stage).micro_batch_size for stage in settings.stages)
    while size >= 1:
        words = (*overrides, *_smaller_batches(settings, size))
        changed = _changed(settings, words)
        try:
            memories = stage_memories(changed, machine, data)
        except ValueError:  # these ranks cannot share the batch so
            memories = []
        if memories and not obstacles(changed, machine, memories):
            return Proposal(words, machine, max(memory.needed for memory in memories))
        size //= 2
    return None


def _smaller_batches(settings: RunSettings, size: int) -> list[str]:
    sizes = {f"{stage}.micro_batch_size": getattr(settings, stage).micro_batch_size for stage in settings.stages}
    sizes["evaluation.batch_size"] = settings.evaluation.batch_size
    return [f"{key}={size}" for key, value in sizes.items() if value > size]


def _changed(settings: RunSettings, overrides: tuple[str, ...]) -> RunSettings:
    values = settings.model_dump()
    for override in overrides:
        (*parents, last), text = override.partition("=")[0].split("."), override.partition("=")[2]
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = {"true": True}.get(text, text)
    return RunSettings.model_validate(values)
