# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Public functions have type annotations. `make lint` checks them with mypy."""

import ast
from pathlib import Path

import pytest
from paths import ROOT


FILES = [
    *(ROOT / f"{name}_plt.py" for name in ("cache", "cache_layers", "configuration", "costs", "generation", "heads")),
    *(ROOT / f"{name}_plt.py" for name in ("hub", "modeling")),
    ROOT / "tokenization" / "tokenization_plt.py",
    *(file for room in ("conversion", "diagnostics", "training") for file in sorted((ROOT / room).glob("*.py"))),
]


def public_functions(node: ast.Module | ast.ClassDef) -> list[ast.FunctionDef]:
    found = []
    for part in node.body:
        if isinstance(part, ast.ClassDef) and not part.name.startswith("_"):
            found += public_functions(part)
        elif isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
            found.append(part)
    return found


def missing(function: ast.FunctionDef) -> list[str]:
    """Returns the names of arguments without a type, and "return" if the result has none."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = [argument.arg for argument in given if argument.annotation is None and argument.arg not in ("self", "cls")]
    return names + ["return"] * (function.returns is None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_public_functions_are_annotated(file: Path):
    functions = public_functions(ast.parse(file.read_text()))
    assert {function.name: missing(function) for function in functions if missing(function)} == {}


def test_the_types_are_shipped():
    assert (ROOT / "py.typed").is_file() and "    py.typed" in (ROOT / "setup.cfg").read_text().splitlines()


def test_missing_annotations_are_found():
    (function,) = public_functions(ast.parse("def f(a: int, b, *, c=1): ...\ndef _g(x): ..."))
    assert missing(function) == ["b", "c", "return"]
