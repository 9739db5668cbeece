# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/faq.md: the memory is what the package computes, and the error messages are those of the code."""

import ast
import re

from paths import ROOT
from transformers import AutoConfig

from iquest_plt.cli.checkpoints import memory_needed


FAQ = (ROOT / "docs" / "faq.md").read_text()


def test_the_memory_is_what_the_package_computes():
    rows = re.findall(r"^\| ([\d,]+)[^|]*\|((?: [\d.]+ GB \|){3})$", FAQ, flags=re.MULTILINE)
    table = {int(length.replace(",", "")): re.findall(r"[\d.]+ GB", cells) for length, cells in rows}
    config = AutoConfig.from_pretrained(ROOT)
    assert len(table) == 6 and max(table) == config.max_position_embeddings
    needed = memory_needed(config, table, config.plt_num_loops)
    assert list(needed) == ["bfloat16", "int8", "int4"]
    for length, cells in table.items():
        assert cells == [f"{sizes[str(length)] / 1e9:.1f} GB" for sizes in needed.values()]
    (per_sequence,) = re.findall(r"further sequence of 32,768 tokens adds ([\d.]+) GB", FAQ)
    assert float(per_sequence) == round((needed["int4"]["65536"] - needed["int4"]["32768"]) / 1e9, 1)


def literals(folder_pattern: str) -> str:
    """Returns all string literals of the Python files, one per line. Each part of an f-string counts as one."""
    texts = []
    for path in ROOT.glob(folder_pattern):
        texts += [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    return "\n".join(text for text in texts if isinstance(text, str))


def test_the_messages_are_those_of_the_code():
    table = FAQ[FAQ.index("| Message |") :]
    messages = re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)))
    assert len(messages) > 10
    source = "\n".join(map(literals, ("*.py", "cli/*.py", "conversion/*.py")))
    assert [message for message in messages if message not in source] == []
