"""Write docs/configuration.md: every key of a recipe, from the docstrings of prealign_ds/config.py.

python tools/config_reference.py [--output docs/configuration.md]
"""

import argparse
import sys
import types
import typing
from pathlib import Path
from typing import Any

if not __package__:  # a script of a clone, and not a module of the installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from prealign_ds.cli import run
from prealign_ds.config import RunSettings, Settings
from prealign_ds.files import atomic_write

_HEAD = """# Every key of a recipe

Made by `python tools/config_reference.py` from [`prealign_ds/config.py`](../prealign_ds/config.py). A recipe is YAML;
any key can be changed behind it on the command line, `data.sequence_length=2048`, a list's items by their places
(`data.corpora.0.weight=3`). Unknown keys fail. Numbers of tokens may be written as `3.5M` or `10B`.
"""


def reference() -> str:
    """The page."""
    return _HEAD + "".join(_section("", RunSettings, []))


def _section(prefix: str, kind: type[Settings], seen: list[type[Settings]]) -> list[str]:
    """A table of a section's own keys, and then the sections in it, each once."""
    rows, below = [], []
    for name, field in kind.model_fields.items():
        inner, listed = _settings_in(field.annotation)
        key = f"{prefix}{name}{'[]' if listed else ''}"
        rows.append(f"| `{prefix}{name}` | {_values(field)} | {_default(field)} | {_described(field)} |\n")
        if inner is not None and inner not in seen:
            seen.append(inner)
            below += _section(f"{key}.", inner, seen)
    title = f"\n## `{prefix.rstrip('.')}`\n" if prefix else "\n## The run\n"
    about = (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
    return [f"{title}\n{about}\n\n| key | values | default | |\n|---|---|---|---|\n", *rows, *below]


def _settings_in(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The section that a field holds, and whether it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, False
    listed = typing.get_origin(annotation) is list
    for argument in typing.get_args(annotation):
        found, inside = _settings_in(argument)
        if found is not None:
            return found, listed or inside
    return None, False


def _values(field: FieldInfo) -> str:
    return _type_name(field.annotation).replace("|", "\\|")


def _type_name(annotation: Any) -> str:
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments if argument is not type(None))
    if origin in (list, tuple, dict):
        between = " to " if origin is dict else ", "
        return f"{origin.__name__} of {between.join(_type_name(a) for a in arguments if a is not ...)}"
    names = {int: "integer", float: "number", str: "text", bool: "true, false", Path: "path"}
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "section"
    return names.get(annotation, getattr(annotation, "__name__", "any"))


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "needed" if field.default_factory is None else ""
    if isinstance(value, Settings):
        return ""
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else ""


def _described(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/configuration.md"))
    arguments = parser.parse_args()
    with atomic_write(arguments.output) as handle:
        handle.write(reference())


if __name__ == "__main__":
    run(main)
