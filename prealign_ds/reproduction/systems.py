"""The systems that the paper compares, and what each changes in the recipe of PreAlign."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from prealign_ds.config import CorpusSettings, RunSettings
from prealign_ds.corpus.clone import CLONE_LANGUAGE

_WITHOUT_STAGES = ("stages=[pretrain]", "codeswitch.mode=off")
_WITHOUT_SOURCE = (
    *_WITHOUT_STAGES, "table=null", "knowledge=null", "evaluation.similarity=null", "evaluation.leakage=null",
    "evaluation.classification=null", "evaluation.max_tokens=0",
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        slug: Its name in files.
        title: Its name in the report.
        changes: Overrides of the recipe, without spaces.
        measures: What its model is measured on beside perplexity (names of launchers/evaluate.py).
        text: ``all`` corpora of the recipe; those in the ``target`` language alone (Only-Tgt); or the source text
            read as its En-Clone, alone (Full-Tgt).
    """

    slug: str
    title: str
    changes: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    text: Literal["all", "target", "source_as_target"] = "all"

    def overrides(self, recipe: RunSettings) -> list[str]:
        """What to put behind the recipe on the command line.

        Raises:
            ValueError: If the system needs En-Clone and the recipe has none.
        """
        if self.text == "all":
            return list(self.changes)
        clones = [corpus for corpus in recipe.data.corpora if corpus.clone]
        if not clones:
            raise ValueError(f"{self.slug}: the recipe has no En-Clone corpus (clone: true); leave this system out")
        corpora = clones
        if self.text == "source_as_target":
            sources = [corpus for corpus in recipe.data.corpora if corpus.language == recipe.data.source_language]
            corpora = [corpus.model_copy(update={"language": CLONE_LANGUAGE, "clone": True}) for corpus in sources]
        held_out = [corpus for corpus in recipe.data.held_out if corpus.clone]
        return [*self.changes, f"data.corpora={_flow(corpora)}", f"data.held_out={_flow(held_out)}"]


def _flow(corpora: Iterable[CorpusSettings]) -> str:
    """Corpora in one word that YAML reads: no shell or list of jobs takes it apart."""
    values: list[dict[str, Any]] = [corpus.model_dump(mode="json") for corpus in corpora]
    return json.dumps(values, separators=(",", ":"))


# The first ones say most: a run that is cut short has them.
_ALL = [
    System("joint", "Joint Training", _WITHOUT_STAGES, ("classification", "leakage")),
    System("prealign", "PreAlign", (), ("classification", "leakage")),
    System("joint_cs", "Joint + input-only CS", ("stages=[pretrain]",), ("classification",)),
    System("init_only", "Joint + align init", ("codeswitch.mode=off",), ("classification",)),
    System("only_tgt", "Only-Tgt", _WITHOUT_SOURCE, text="target"),
    System("full_tgt", "Full-Tgt", _WITHOUT_SOURCE, text="source_as_target"),
    System("prealign_vanilla_cs", "PreAlign, vanilla CS", ("codeswitch.mode=vanilla",), ("leakage",)),
    System("prealign_beta25", "PreAlign, 25 % of W", ("table.top_share=0.25",), ("classification",)),
    System("prealign_beta50", "PreAlign, 50 % of W", ("table.top_share=0.5",), ("classification",)),
    System("prealign_beta75", "PreAlign, 75 % of W", ("table.top_share=0.75",), ("classification",)),
    System("perfect", "Perfect alignment", (*_WITHOUT_STAGES, "model.perfect_alignment=true"), ("classification",)),
]
SYSTEMS = {system.slug: system for system in _ALL}
"""All systems by slug, in the order in which they are run."""
