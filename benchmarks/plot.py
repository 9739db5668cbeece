# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Draws the README's pictures from the newest result of each name in `benchmarks/results/`.

    python -m iquest_plt.benchmarks.plot
"""

import argparse
import json
from pathlib import Path

from .common import RESULTS


try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("matplotlib is not installed: pip install '.[benchmarks]' in a checkout of iquest-plt") from error


PICTURES = RESULTS.parents[1] / "docs"
PREFILL = [f"prefill-1024{part}" for part in ("", "-three-loops", "-32k", "-32k-four-loops")]
LOOPS = {1: "tab:gray", 2: "tab:blue", 3: "tab:green", 4: "tab:red"}


def newest(*names: str) -> dict:
    """
    Reads the newest result saved as `DATE-name.json`, and appends those of further names (longer texts, other loops).
    Raises FileNotFoundError if a result is missing.
    """
    documents = []
    for name in names:
        paths = sorted(RESULTS.glob(f"????-??-??-{name}.json"))
        if not paths:
            raise FileNotFoundError(f"No result {name!r} in {RESULTS}. Run the benchmark with `--save {name}`.")
        documents.append(json.loads(paths[-1].read_text()))
    return documents[0] | {"results": [result for document in documents for result in document["results"]]}


def draw_decode(axes, result: dict) -> None:
    """Draws time per token over R = 1, with loops together and in sequence."""
    batch = result["options"]["batch"][0]
    results = [row for row in result["results"] if row["batch"] == batch]
    for schedule, style, label in (("sequence", "s--", "loops in sequence"), ("together", "o-", "loops together")):
        rows = [row for row in results if row["loops"] == 1 or row["schedule"] == schedule]
        axes.plot([row["loops"] for row in rows], [row["ratio"] for row in rows], style, label=label)
    llama = next(row["ratio"] for row in results if row["loops"] == "Llama")
    axes.axhline(llama, color="tab:gray", linestyle=":", label="Llama of the same shape")
    axes.set(xlabel="loops R", ylabel="time per token over R = 1", xticks=[1, 2, 3, 4], ylim=(0, None))
    parameters, options = result["parameters"] / 1e9, result["options"]
    axes.set_title(f"hidden size {options['hidden']}, {parameters:.1f}B parameters, batch {batch}")


def draw_prefill(axes, result: dict) -> None:
    """Draws time to the first token over R = 1, against the prompt length."""
    for loops, color in LOOPS.items():
        for positions, style in (("all", "s--"), ("the end", "o-")):
            rows = [
                row
                for row in result["results"]
                if (row["loops"], row["positions_of_further_loops"]) == (loops, positions)
            ]
            if rows and loops > 1:
                label = f"R = {loops}, further loops over {'all positions' if positions == 'all' else positions}"
                x, y = zip(*((row["length"], row["ratio"]) for row in rows), strict=True)
                axes.plot(x, y, style, color=color, label=label)
    axes.axhline(1, color="tab:gray", linestyle=":")
    axes.set_xscale("log", base=2)
    lengths = sorted({row["length"] for row in result["results"]})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set(xlabel="tokens of the prompt", ylabel="time to the first token over R = 1", ylim=(0, None))
    axes.set_title(f"hidden size {result['options']['hidden']}, {result['options']['layers']} layers")


def draw_memory(axes, result: dict) -> None:
    """Draws bytes of the cache against the text length."""
    for loops, color in LOOPS.items():
        rows = [row for row in result["results"] if row["loops"] == loops]
        lengths = [row["length"] for row in rows]
        if loops > 1:
            gigabytes = [row["cache_bytes_of_a_cache_per_loop"] / 1e9 for row in rows]
            axes.plot(lengths, gigabytes, "s--", color=color, label=f"R = {loops}, a cache per loop")
        gigabytes = [row["cache_bytes"] / 1e9 for row in rows]
        axes.plot(lengths, gigabytes, "o-", color=color, label=f"R = {loops}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set(xlabel="tokens", ylabel="cache, GB", title="LoopCoder-V2, bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="epyc-2-cores", help="suffix of the results' names")
    parser.add_argument("--out", type=Path, default=PICTURES)
    arguments = parser.parse_args()
    pictures = {
        "decode": [(draw_decode, ["decode-1024"]), (draw_decode, ["decode-2048"])],
        "prefill": [(draw_prefill, PREFILL)],
        "memory": [(draw_memory, ["memory"])],
    }
    for picture, panels in pictures.items():
        figure = Figure(figsize=(4 * len(panels) + 3, 4))
        all_axes = figure.subplots(1, len(panels), squeeze=False)
        for axes, (draw, names) in zip(all_axes[0], panels, strict=True):
            draw(axes, newest(*(f"{name}-{arguments.machine}" for name in names)))
            axes.grid(alpha=0.3)
        all_axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
        figure.tight_layout()
        path = arguments.out / f"{picture}.png"
        figure.savefig(path, dpi=110)
        print(path)


if __name__ == "__main__":
    main()
