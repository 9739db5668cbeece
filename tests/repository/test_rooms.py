# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Imports follow the table in docs/architecture.md, and there are no import cycles."""

import ast
import re
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

import pytest
from paths import ROOT


PACKAGE, MODEL, INIT = "iquest_plt", "the model", "__init__.py"
ROOMS = ("utils", "tokenization", "conversion", "diagnostics", "training", "science", "serving", "cli", "benchmarks")
FILES = {
    ".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in (*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py")))
}
# The only import that never runs. It is under TYPE_CHECKING, to tell Transformers which files a checkpoint needs.
NEVER_RUNS = {"iquest_plt.configuration_plt": {"iquest_plt.heads_plt"}}


def read_table() -> dict[str, set[str]]:
    """Reads from the docs what each room may import."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    allowed = {}
    for name, targets in re.findall(r"^\| `(.+?)`.*\| (.+?) \|$", text, flags=re.MULTILINE):
        name = MODEL if name == "*_plt.py" else name.rstrip("/")
        if name in (MODEL, INIT, *ROOMS):
            named = set(allowed) if targets == "all above" else set(re.sub("[`/]", "", targets).split(", "))
            allowed[name] = named & {MODEL, INIT, *ROOMS} | {name}
    return allowed


def room(module: str) -> str:
    if module == PACKAGE:
        return INIT
    first = module.split(".")[1]
    return MODEL if first.endswith("_plt") else first


def imported(module: str, source: str, is_package: bool, modules: Iterable[str]) -> set[str]:
    """Returns the modules of this package that `source` imports, at any place in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            parts = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else base for name in names}  # a module of `base`, or a name in it
    return {name for name in found if name.split(".")[0] == PACKAGE} - {module}


def read_imports() -> dict[str, set[str]]:
    return {
        module: imported(module, path.read_text(), path.name == "__init__.py", FILES) - NEVER_RUNS.get(module, set())
        for module, path in FILES.items()
    }


def upward(imports: dict[str, set[str]], allowed: dict[str, set[str]]) -> list[str]:
    """Returns the imports that the table does not allow."""
    return [
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in sorted(targets)
        if room(target) not in allowed[room(module)]
    ]


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """Returns modules that form an import cycle; [] if there are none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_table_has_every_room():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    assert list(read_table()) == [MODEL, "utils", "tokenization", INIT, *ROOMS[2:]]


def test_rooms_import_what_the_table_allows():
    imports = read_imports()
    assert not {target for targets in imports.values() for target in targets} - FILES.keys()
    assert upward(imports, read_table()) == []


def test_there_are_no_import_cycles():
    assert find_cycle(read_imports()) == []


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("iquest_plt.grid_plt", "from .conversion import layout", "iquest_plt.conversion.layout"),
        ("iquest_plt.tokenization.bpe", "from .. import __version__", "iquest_plt"),
        ("iquest_plt.training.sft", "def f():\n    from ..cli.common import print_result", "iquest_plt.cli.common"),
        ("iquest_plt.diagnostics.metrics", "import iquest_plt.training.data as data", "iquest_plt.training.data"),
        ("iquest_plt.serving.vllm.carry", "from ...cli import main", "iquest_plt.cli"),
    ],
)
def test_forbidden_imports_are_found(module, source, target):
    imports = read_imports() | {module: imported(module, source, False, FILES)}
    assert upward(imports, read_table()) == [f"{module} imports {target}"]


def test_import_cycles_are_found():
    """Also inside a function, and through a package."""
    sources = {
        "iquest_plt.cli": "from . import a",
        "iquest_plt.cli.a": "from .b import f",
        "iquest_plt.cli.b": "def f():\n    from . import name",
    }
    imports = {name: imported(name, source, name == "iquest_plt.cli", sources) for name, source in sources.items()}
    assert set(find_cycle(imports)) == set(sources)
    imports["iquest_plt.cli.b"] = set()
    assert find_cycle(imports) == []
