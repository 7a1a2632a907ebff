"""The house rules that a machine can check: import directions, and that the README's commands exist."""

import ast
import re

import pytest
from conftest import REPOSITORY
from packaging.version import Version

FLOORS = [
    ("files", "randomness", "words", "languages", "cli", "config", "recipe"),
    ("corpus",),
    ("model",),
    ("alignment",),
    ("codeswitch",),
    ("knowledge",),
    ("stream",),
    ("evaluation",),
    ("training",),
    ("planning",),
    ("reporting",),
    ("reproduction", "plugins", "exporting", "doctoring"),
]
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}
PAGES = [page for place in (".", "docs/**", "ds_configs") for page in sorted(REPOSITORY.glob(f"{place}/*.md"))]
MODULES = sorted((REPOSITORY / "prealign_ds").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_one_way(path):
    own = path.relative_to(REPOSITORY / "prealign_ds").parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert not name.startswith(("launchers", "tools")), name
            if name.startswith("prealign_ds."):
                other = name.split(".")[1]
                assert FLOOR_OF[other] <= FLOOR_OF[own], f"{own} imports {other}, which stands on it"


def test_the_commands_of_the_readme_exist():
    text = (REPOSITORY / "README.md").read_text()
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`(?:\w+=\S+ )?make ([\w-]+)`", text)) <= targets
    for path in set(re.findall(r"(?:tools|launchers)/[\w/]+\.(?:py|yaml)", text)) - {"launchers/recipes/my.yaml"}:
        assert (REPOSITORY / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_within_the_repository_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_page_of_all_keys_is_made_of_the_configuration():
    from tools.config_reference import reference

    page = REPOSITORY / "docs/configuration.md"
    assert page.read_text() == reference(), "run: python tools/config_reference.py"


def test_every_field_of_the_configuration_is_documented():
    from prealign_ds import config

    for section in vars(config).values():
        if isinstance(section, type) and issubclass(section, config.Settings) and section is not config.Settings:
            for name, field in section.model_fields.items():
                assert field.description, f"{section.__name__}.{name}"


def test_the_tested_versions_are_the_same_everywhere():
    """The lower ends of pyproject.toml are the oldest pins; PyTorch's alone were not tried."""
    newest, oldest = (
        dict(re.findall(r"^([\w-]+)==(\S+)$", (REPOSITORY / name).read_text(), re.MULTILINE))
        for name in ("requirements.txt", "requirements-oldest.txt")
    )
    table = re.findall(
        r"^\| ([\w-]+) \| (\d\S*) \| (\d\S*) \|", (REPOSITORY / "docs/versions.md").read_text(), re.MULTILINE
    )
    assert table == [(name, version, newest[name]) for name, version in oldest.items()]
    project = (REPOSITORY / "pyproject.toml").read_text()
    ranges = re.findall(r'^    "([\w-]+)>=(\S+)",$', project, re.MULTILINE)
    dependencies = project.partition("\ndependencies = [\n")[2].partition("\n]")[0].count("\n") + 1
    assert {name for name, _ in ranges[:dependencies]} <= oldest.keys()
    for name, lower in ranges:
        assert Version(lower) <= Version(newest[name])
        assert name == "torch" or name not in oldest or Version(lower) == Version(oldest[name]), name
