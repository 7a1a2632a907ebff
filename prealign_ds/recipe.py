"""Recipes: the configuration of a run as YAML with dotted overrides, all problems reported at once."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from prealign_ds.config import RunSettings, Settings
from prealign_ds.files import shipped

_Kind = TypeVar("_Kind", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are truth values: ``off`` is a mode, and ``no`` is Norwegian."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def load_settings(path: str | Path, overrides: list[str] | None = None) -> RunSettings:
    """Read a recipe and apply ``dotted.key=value`` overrides, whose values are YAML.

    Raises:
        ValueError: With every problem of the file and the overrides, each on a line of its own.
    """
    return parse_settings(RunSettings, read_yaml(path), overrides or [], str(path))


def load_run(run_dir: Path, overrides: list[str] | None = None) -> RunSettings:
    """The settings that a run was started with, from its folder, and overrides (:func:`load_settings`).

    Raises:
        ValueError: If it is not the folder of a run.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir}: no config.yaml here, so it is not the folder of a run; give the run_dir of one")
    return load_settings(path, overrides)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, in which only ``true`` and ``false`` are truth values.

    Raises:
        ValueError: If it is not YAML, or no mapping.
    """
    path = shipped(Path(path))
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a mapping of keys to values is expected; found {type(values).__name__}")
    return values


def parse_settings(kind: type[_Kind], values: dict[str, Any], overrides: list[str], name: str) -> _Kind:
    """Settings of one kind from their values and ``dotted.key=value`` overrides.

    Raises:
        ValueError: With every problem, each on a line of its own, below ``name``.
    """
    for override in overrides:
        _apply(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem, kind) for problem in error.errors()]
        raise ValueError(f"{name}: {len(lines)} problem(s)\n" + "\n".join(f"  {line}" for line in lines)) from error


def _apply(values: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r}: write it as dotted.key=value")
    *parents, last = key.split(".")
    node = values
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            if not isinstance(node.get(part), (dict, list)):
                node[part] = {}
            node = node[part]
        else:
            raise ValueError(f"override {override!r}: {part!r} is not a key or a place in a list")
    try:
        node[int(last) if isinstance(node, list) else last] = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, IndexError) as error:
        raise ValueError(f"override {override!r}: {error}") from error


def _explain(problem: Any, kind: type[Settings]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _known_keys(kind, problem["loc"][:-1]), 1, 0.4)
        return f"{where}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "; remove it")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{where}: missing; give it a value"
    shown = "" if problem["type"] == "value_error" else f" (found {problem['input']!r})"
    return f"{where}: {message}{shown}" if where else message


def _known_keys(kind: type[Settings], location: tuple[Any, ...]) -> list[str]:
    section: Any = kind
    for part in location:
        if isinstance(part, int):
            continue
        section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next(_section_of(part) for part in annotation.__args__ if part is not type(None))


def dump_settings(settings: RunSettings) -> str:
    """The resolved configuration as YAML, every key with its value."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_MAY_CHANGE = (
    "run_dir", "world_size", "deepspeed", "evaluation", "checkpoint", "guards", "log", "data.num_workers",
    "align.batch_tokens", "align.micro_batch_size", "pretrain.batch_tokens", "pretrain.micro_batch_size",
)  # fmt: skip
_DATA = ("data.corpora", "data.held_out", "data.blend_block", "table.", "codeswitch.", "knowledge")


def check_same_run(settings: RunSettings) -> None:
    """Raise ValueError if ``run_dir`` holds something else than this run, or its part until now.

    Settings of the data may differ with ``checkpoint.accept_other_data``.
    """
    path = settings.run_dir / "config.yaml"
    if not path.is_file():
        found = [item.name for item in settings.run_dir.iterdir()] if settings.run_dir.is_dir() else []
        strange = sorted(name for name in found if not name.startswith(".") and not name.endswith((".log", ".out")))
        if strange:
            raise ValueError(
                f"{settings.run_dir}: holds {', '.join(strange[:5])} and no config.yaml, so it is not the folder of a "
                "run; choose another run_dir"
            )
        return
    old, new = flat(load_settings(path)), flat(settings)
    may_change = _MAY_CHANGE + (_DATA if settings.checkpoint.accept_other_data else ())
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    changed = [key for key in changed if not key.startswith(may_change)]
    if changed:
        shown = "\n".join(f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed[:10])
        data = all(key.startswith(_DATA) for key in changed)
        override = ", or go on with the new data: checkpoint.accept_other_data=true" if data else ""
        raise ValueError(
            f"{settings.run_dir}: holds a run with other settings:\n{shown}\n"
            f"choose another run_dir, or delete that folder to start again{override}"
        )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; those of a list are its places."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, list):
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, item in value.items() for k, v in flat(item, f"{prefix}.{name}".lstrip(".")).items()}
