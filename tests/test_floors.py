"""Imports go down the floors of README's map, never from `backbones` to `detect` or `tools`."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def rooms(package: str) -> list[list[str]]:
    """The rooms of a package in README's table, a list for each of its lines, from the top."""
    text = (ROOT / "README.md").read_text()
    table = text.partition(f"| `{package}/` | |")[2].partition("\n\n")[0]
    lines = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [re.findall(r"`([\w.]+?)(?:/|\.py)`", line) for line in lines]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, as written."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("package", ["backbones", "detect"])
def test_the_map_has_every_room_and_nothing_imports_upwards(package):
    floor = {room: number for number, line in enumerate(rooms(package)) for room in line}
    there = {path.stem for path in (ROOT / package).iterdir() if path.suffix in ("", ".py")}
    assert floor.keys() == {name for name in there if not name.startswith("__")}
    for path in (ROOT / package).rglob("*.py"):
        own = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == package and own in floor and len(parts) > 1 and parts[1] in floor:
                assert floor[parts[1]] >= floor[own], f"{path} imports {module}"


def test_packages_stand_on_each_other_in_one_direction():
    above = {"backbones": {"detect", "tools", "tests"}, "detect": {"tools", "tests"}}
    for package, forbidden in above.items():
        for path in (ROOT / package).rglob("*.py"):
            assert not {module.split(".")[0] for module in imports(path)} & forbidden, path
