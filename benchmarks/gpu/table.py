# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the results of all stages as one Markdown page."""

import json
from pathlib import Path

from ...utils.markdown import table


ORDER = ("right", "decode", "drafts", "prompt", "train", "small_models")
HIDDEN = {
    "ms",
    "loops",
    "batch",
    "context",
    "length",
    "kernels",
    "schedule",
    "positions",
    "checkpointing",
    "rows",
}  # keys left out of the table, or already in the case's name


def write_table(out: Path) -> str:
    """Writes `gpu.md` from the JSON files in `out`, and returns its text."""
    pages = [_page(json.loads(path.read_text())) for name in ORDER if (path := out / f"{name}.json").exists()]
    text = "\n".join(pages)
    (out / "gpu.md").write_text(text)
    return text


def _page(result: dict) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in result["environment"].items())
    lines = [f"## {result['stage']}", "", f"{facts}; {result['seconds']} s.", ""]
    if hardware := result.get("hardware"):
        speed, flops = hardware["bytes_per_second"] / 1e12, hardware["flops_per_second"] / 1e12
        lines += [f"A copy reaches {speed:.2f} TB/s (read and written), a product of 8,192 rows {flops:.0f} TFLOP/s."]
        lines += [""]
    whole = {name: case for name, case in result["cases"].items() if not {"error", "left out"} & case.keys()}
    lines += _rows(whole) if result["stage"] != "right" else [_line(name, case) for name, case in whole.items()]
    for name, case in result["cases"].items():
        if name not in whole:
            text = case.get("left out") or case["error"].strip().splitlines()[-1]
            lines.append(f"* **{name}**: {'left out, ' if 'left out' in case else 'failed, '}{text}")
    return "\n".join(lines) + "\n"


def _line(name: str, case: dict) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in case.items() if key not in ("right", "columns"))
    return f"* {name}: **{'right' if case['right'] else 'WRONG'}**, {facts}"


def _rows(cases: dict[str, dict]) -> list[str]:
    """Returns a table of the values that are not in the case's name, with ratios to the same case at R = 1."""
    columns = ["case", "ms", "over R = 1"]
    columns += sorted({key for case in cases.values() for key in case} - HIDDEN)
    rows = []
    for name, case in cases.items():
        base = cases.get(_with_one_loop(name), {}).get("ms")
        ratio = f"{case['ms'] / base:.3f}" if base else ""
        rows.append([name, case["ms"], ratio, *(case.get(key, "") for key in columns[3:])])
    return [table(columns, rows), ""]


def _with_one_loop(name: str) -> str:
    name = name.removesuffix(", fused gate")  # one loop has no gates
    words = [word for word in name.split() if word != "sequence"]
    words = ["R=1" if word.startswith("R=") else word for word in words]
    return " ".join("positions=end" if word == "positions=all" else word for word in words)
