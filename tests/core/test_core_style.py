# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Limits that keep the model's files readable: lines per file, lines per function, arguments per function."""

import ast

import pytest
from paths import ROOT


FILES = sorted(path.name for path in ROOT.glob("*_plt.py"))
LARGEST_FILE = {"modeling_plt.py": 400}  # lines; 450 for all other files
# Methods whose arguments are defined by the library's interface.
INTERFACE = {("modeling_plt.py", "forward"), ("generation_plt.py", "_assisted_decoding")}


def functions(file: str) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)]


def code_lines(function: ast.FunctionDef) -> int:
    """Returns the number of lines without the docstring."""
    docstring = function.body[0].value if ast.get_docstring(function) else None
    hidden = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
    return function.end_lineno - function.lineno + 1 - hidden


def arguments(function: ast.FunctionDef) -> list[str]:
    names = [argument.arg for argument in function.args.posonlyargs + function.args.args + function.args.kwonlyargs]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_readable(file):
    assert len((ROOT / file).read_text().splitlines()) <= LARGEST_FILE.get(file, 450)
    for function in functions(file):
        assert code_lines(function) <= 45, function.name
        assert len(arguments(function)) <= 7 or (file, function.name) in INTERFACE, function.name
