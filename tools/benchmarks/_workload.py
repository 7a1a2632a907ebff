"""What the benchmarks of training train, and how: the shipped recipes, on made-up text and its clone.

Loops are those of a run (:class:`StageSteps`), or the least there can be on the same engine (:class:`BareSteps`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from prealign_ds.alignment.counting import count_words
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import RunSettings
from prealign_ds.files import read_json
from prealign_ds.recipe import load_settings
from prealign_ds.reproduction.machine import fitting_ds_config
from prealign_ds.stream.loader import MicroBatches, make_loader
from prealign_ds.training.environment import World
from prealign_ds.training.loop import StageLoop
from prealign_ds.training.monitor import Series
from prealign_ds.training.plan import plan_stages
from prealign_ds.training.preemption import StopFlag
from prealign_ds.training.run import Run
from prealign_ds.training.watchdog import Watchdog
from tools.benchmarks.fetch import made_up_pairs, made_up_texts, tokenize_texts

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = 2000
"""Of some 4,300 characters each."""
VOCABULARY = 64_000 if torch.cuda.is_available() else 4096
"""The paper's, or the quickstart's; twice that with En-Clone."""

LOSS_TOLERANCE = 2e-3
"""Of losses of the first steps, relative: what sums in bf16 differ by when they come in another order."""


def on_gpu() -> bool:
    """Whether there is a GPU to measure on."""
    return torch.cuda.is_available()


def reference_recipe() -> tuple[str, list[str]]:
    """The recipe that benchmarks train unless they say otherwise, and what they change in it."""
    if on_gpu():
        return "en_clone_150m", ["pretrain.batch_tokens=131_072"]
    return "quickstart", [fitting_ds_config()]


def build_data(folder: Path) -> None:
    """``folder`` gets tokenizer/, text.bin, text.idx and table.parquet, with translations into four languages."""
    texts = list(islice(made_up_texts(), DOCUMENTS))
    tokenize_texts(texts, VOCABULARY, folder)
    counts = count_words(texts, workers=1)
    AlignmentTable.from_pairs(counts, made_up_pairs(counts), 2).save(folder / "table.parquet")


def recipe_words(data: Path, recipe: str, run_dir: Path, changes: Sequence[str] = ()) -> list[str]:
    """A recipe's path and the overrides that make it stage 2 alone on :func:`build_data`'s, without an end in sight.

    The learning rate is constant, so that a loop without a schedule takes the same steps.
    """
    return [
        str(ROOT / f"launchers/recipes/{recipe}.yaml"),
        f"run_dir={run_dir}",
        "stages=[pretrain]",
        "lm_tokens=1000B",
        f"data.tokenizer={data}/tokenizer",
        f"table.path={data}/table.parquet",
        *(f"data.corpora.{place}.path={data}/text" for place in (0, 1)),
        "data.held_out=[]",
        "pretrain.optimizer.schedule=constant",
        "pretrain.optimizer.warmup_tokens=0",
        "log.every_steps=1",
        *changes,
    ]


def workload_settings(words: Sequence[str]) -> RunSettings:
    """The settings behind :func:`recipe_words`, from whatever folder this runs in."""
    settings = load_settings(words[0], list(words[1:]))
    return settings.model_copy(update={"deepspeed": ROOT / settings.deepspeed})


def autocasts(settings: RunSettings) -> bool:
    """Whether fp32 weights compute in bf16: not on a CPU that has no instructions for it."""
    return bool(read_json(settings.deepspeed).get("torch_autocast", {}).get("enabled"))


class StageSteps:
    """A run's loop of stage 2, a step a call.

    Args:
        settings: The run; its folder is made.
        world: This process among the ranks.
        stop: Its stop flag.
        watchdog: Its watchdog.
    """

    def __init__(self, settings: RunSettings, world: World, stop: StopFlag, watchdog: Watchdog):
        (plan,) = plan_stages(settings, world.size)
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        self.loop = StageLoop(Run(settings, world), plan, stop, watchdog)
        self._steps = self.loop.steps()

    def __call__(self) -> None:
        """Take a step."""
        next(self._steps)

    def learn_words(self, steps: int) -> None:
        """Read the samples of the next ``steps`` steps, so that their words are known, as they are in a long run.

        The switcher encodes the translations of a word when it first meets it.
        """
        for sample in range(self.loop.sample, self.loop.sample + steps * self.loop.plan.batch_samples):
            self.loop.stream[sample]

    def series(self, key: str) -> list[float]:
        """``key`` of each step so far, on rank 0."""
        return [record[key] for record in Series(self.loop.run.dir / "metrics.jsonl").records()]


class FirstBatches:
    """The first batches of a stage's stream on this rank's device, again and again.

    Args:
        loop: Of the stage.
        steps: How many batches are read.
    """

    def __init__(self, loop: StageLoop, steps: int):
        plan, world = loop.plan, loop.run.world
        end = steps * plan.batch_samples
        micro_batches = MicroBatches(0, end, plan.batch_samples, plan.micro_batch_size, world.rank, world.size)
        tensors = [
            (batch.input_ids.to(world.device), batch.targets.to(world.device))
            for batch in make_loader(loop.stream, micro_batches)
        ]
        number = plan.accumulation_steps
        self._batches = cycle([tensors[start : start + number] for start in range(0, len(tensors), number)])

    def __call__(self) -> list[tuple[Tensor, Tensor]]:
        """Input ids and targets of the next step's micro-batches."""
        return next(self._batches)


class BareSteps:
    """The least loop that trains on a DeepSpeed engine.

    Args:
        loop: Where the engine comes from, the model and its DeepSpeed configuration with it.
        batches: Gives the next step's micro-batches.
    """

    def __init__(self, loop: StageLoop, batches: FirstBatches):
        self._engine, self._batches = loop.engine, batches
        self._scale = loop.plan.loss_scale(loop.plan.batch_samples)

    def __call__(self) -> list[dict[str, Tensor]]:
        """Take a step; what the model logs of each micro-batch."""
        logs = []
        for inputs, targets in self._batches():
            loss, log = self._engine(inputs, targets, self._scale)
            self._engine.backward(loss)
            self._engine.step()
            logs.append(log)
        return logs


def mean_loss(logs: Sequence[dict[str, Tensor]]) -> float:
    """Nats a target, of these micro-batches on all ranks."""
    sums = torch.stack([torch.stack([log["lm_loss_sum"].double(), log["num_targets"].double()]) for log in logs]).sum(0)
    dist.all_reduce(sums)
    return float(sums[0] / sums[1])
