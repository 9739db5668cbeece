# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The report on made-up runs: one command writes all tables, and the numbers in them are those of the runs."""

import json
import math
import statistics

import pytest


for module in ("scipy", "matplotlib"):
    pytest.importorskip(module, reason="the report needs scipy and matplotlib: pip install '.[training]'")
report = pytest.importorskip("iquest_plt.science.report")

SIZE = ", 3.15 million parameters, 63.0 million tokens"
ROWS, TOKENS, BYTES_PER_TOKEN = 8, 10, 4.0
NATS = math.log(2) * TOKENS * BYTES_PER_TOKEN  # of a row with one bit per byte


def made_up_run(loops: int, shift: bool, seed: int, bits: float) -> dict:
    """A run with `bits` per byte with its own number of loops, and 0.1 more for each loop more or fewer."""
    nats = [[NATS * (bits + 0.1 * abs(loops - count))] * ROWS for count in range(1, 6)]
    contrast = {"0.0": nats[loops - 1], "0.1": [0.98 * value for value in nats[loops - 1]]}
    return {
        "loops": loops,
        "shift": shift,
        "attention": "gated",
        "seed": seed,
        "tokens": 63_000_000,
        "non_embedding_parameters": 3_150_000,
        "losses": [[20, 5.0], [40, 4.0]],
        "offset_shares": None,
        "environment": {"heldout_bytes_per_token": BYTES_PER_TOKEN},
        "heldout": {
            "tokens_per_row": TOKENS,
            "nats": nats,
            "effective_rank": [10.0, 20.0, 19.0, 18.0, 17.0],
            "contrast": contrast if loops > 1 else None,
        },
    }


@pytest.fixture
def folder(tmp_path):
    runs = []
    for seed, level in enumerate((1.0, 1.5, 2.0)):  # seeds differ far more than models do
        runs.append(made_up_run(1, True, seed, level))
        runs.append(made_up_run(2, True, seed, level - 0.2 - 0.01 * seed))
        runs.append(made_up_run(2, False, seed, level - 0.25))
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    return tmp_path


def sections(folder) -> dict[str, list[str]]:
    report.main(["--folder", str(folder)])
    parts = (folder / "tables.md").read_text().split("\n## ")
    return {part.splitlines()[0]: [line for line in part.splitlines() if line.startswith("|")][2:] for part in parts}


def test_tables_have_the_numbers_of_the_runs(folder):
    found = sections(folder)
    losses = found["Held-out losses" + SIZE]
    assert losses[0].startswith("| R = 1 | 3 | 1.5000 ± 1.2421 | **1.500** | 1.600 | 1.700 |")  # t(2) · 0.5 / √3
    assert losses[1].startswith("| R = 2, no shift | 3 | 1.2500 ± 1.2421 | 1.350 | **1.250** |")
    second, without, shift = found["Differences" + SIZE]
    half = 4.3027 * 0.01 / math.sqrt(3)
    assert second.startswith(f"| second loop, shift | 3 | -0.2100 | {-0.21 - half:+.4f} … {-0.21 + half:+.4f} |")
    assert second.endswith("| yes |")
    assert without.startswith("| second loop, no shift | 3 | -0.2500 | -0.2500 … -0.2500 | -0.2500 … -0.2500 |")
    assert shift.startswith("| no shift over shift, R = 2 | 3 | -0.0400 |") and shift.endswith("| yes |")
    assert found["The paper's rule" + SIZE][0] == "| R = 1 | 1 1 1 | 1 1 1 | 1 1 1 |"
    assert found["The paper's rule" + SIZE][2] == "| R = 2, shift | 2 2 2 | 2 2 2 | 2 2 2 |"
    assert "| R = 2, no shift | 0 | 0.1 | -0.01500 | -0.01500 … -0.01500 |" in found["Contrast of loops" + SIZE]
    assert (folder / "losses.png").stat().st_size > 10_000
    assert "State tracking" not in found


def test_a_second_family_has_its_own_sections(folder):
    runs = [made_up_run(1, True, 0, 1.0), made_up_run(2, True, 0, 0.75)]
    (folder / "runs_small.json").write_text(json.dumps([run | {"non_embedding_parameters": 200_000} for run in runs]))
    found = sections(folder)
    assert found["Differences, 0.20 million parameters, 63.0 million tokens"] == [
        "| second loop, shift | 1 | -0.2500 | one seed | -0.2500 … -0.2500 |  |  |"
    ]
    assert len(found["Differences" + SIZE]) == 3
    assert (folder / "losses_small.png").stat().st_size > 10_000


def test_losses_are_split_into_copies_and_other_tokens(folder):
    runs = json.loads((folder / "runs.json").read_text())
    for run in runs:  # a quarter of the 80 tokens are copies, with the same losses in every row
        own = run["heldout"]["nats"][run["loops"] - 1][0]
        copied = own / 2 if run["loops"] == 1 else own / 4
        run["heldout"] |= {"copies": 20, "copied_nats": [copied] * ROWS}
    (folder / "runs.json").write_text(json.dumps(runs))
    found = sections(folder)["Copies" + SIZE]
    # 1 bit per byte is 2.7726 nats per token: of R = 1, half on the quarter of copies, so 5.5452 and 1.8484 per token.
    assert found[0] == "| R = 1 | 5.545 8.318 11.090 | 1.848 2.773 3.697 |"
    assert found[2] == "| R = 2, shift | 2.218 3.577 4.935 | 2.218 3.577 4.935 |"
    second = next(line for line in found if line.startswith("| second loop, shift |"))
    copies = [2.77259 * value for value in (0.8 - 2.0, 1.29 - 3.0, 1.78 - 4.0)]
    others = [2.77259 * value for value in (0.8 - 2 / 3, 1.29 - 1.0, 1.78 - 4 / 3)]
    for values, cell in zip((copies, others), second.split(" | ")[2:], strict=True):
        mean = sum(values) / 3
        half = 4.30265 * statistics.stdev(values) / math.sqrt(3)
        assert cell.rstrip(" |") == f"{mean:+.4f} ({mean - half:+.4f} … {mean + half:+.4f})"


def test_same_runs_give_the_same_tables(folder):
    report.main(["--folder", str(folder)])
    first = (folder / "tables.md").read_bytes()
    report.main(["--folder", str(folder)])
    assert (folder / "tables.md").read_bytes() == first


def test_further_results_have_sections(folder):
    contrast = {"model": "small", "weight": 0.1, "bits_per_byte": 0.8, "difference": -0.004}
    contrast |= {"interval": [-0.005, -0.003], "top1": 0.5, "top1_difference": 0.01, "top1_interval": [-0.002, 0.022]}
    points = [{"rule": "random", "share": 0.5, "loops": 1.5, "bits_per_byte": 0.9}]
    chosen = {"share": 0.5, "loops": 1.5, "bits_per_byte": 0.85, "difference": -0.05, "interval": [-0.06, -0.04]}
    points += [chosen | {"rule": "entropy"}, chosen | {"rule": "before", "bits_per_byte": 0.88, "difference": -0.02}]
    holes = {"model": "small", "loops": 2, "none": 1.0, "all": 0.8, "points": points}
    setting = {"task": "three", "length": 8, "blocks": [4], "pack": 1, "size": 64, "steps": 9, "rows": 8}
    tracking = [
        setting
        | {"shift": True, "attention": "gated", "loops": loops, "layers": layers, "seed": seed}
        | {"tokens_per_text": {"4": 11}, "accuracy": {"4": {"8": 0.5 + loops * layers * seed / 10, "16": 1.0}}}
        for loops, layers in ((2, 1), (1, 1), (1, 2))
        for seed in (1, 0)
    ]
    copying = {"model": "small", "share": 0.2, "bits_per_byte": 0.8, "copies": 0.5, "others": 2.0}
    copying |= {"copies_interval": [0.4, 0.6], "others_interval": [1.9, 2.1]}
    (folder / "copying.json").write_text(json.dumps([copying]))
    for name, content in (("contrast", [contrast]), ("holes", [holes]), ("tracking", tracking)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    found = sections(folder)
    assert found["Contrast of loops, further models"] == [
        "| small | 0.1 | 0.8 | -0.00400 (-0.50%) | -0.00500 … -0.00300 | 50.00% | +1.00 (-0.20 … +2.20) |"
    ]
    copies = "| small | 20.0% | 0.500 (0.400 … 0.600) | 2.000 (1.900 … 2.100) | 0.800 |"
    assert found["Copies, further models"] == [copies]
    assert found["Loops per token"] == [
        "| small | 1.00 | 1.0 |  |  | 1.0 |",
        "| small | 1.50 | 0.9 | 0.85 (-0.0500; -0.0600 … -0.0400) | 0.88 (-0.0200; -0.0600 … -0.0400) | 0.90000 |",
        "| small | 2.00 | 0.8 |  |  | 0.8 |",
    ]
    trained = "| three things | 8 moves | 1 x 64, 9 steps, k in 4 | 4 |"
    assert found["State tracking"] == [
        f"{trained} R = 1 | 11 | 0.50 0.60 | 1.00 1.00 |",
        f"{trained} R = 2, shift | 22 | 0.50 0.70 | 1.00 1.00 |",
        f"{trained.replace('1 x', '2 x')} R = 1 | 11 | 0.50 0.70 | 1.00 1.00 |",
    ]
    # Differences of 0 and 0.1: their standard deviation is 0.0707, and Student's t for two values 12.706.
    assert found["State tracking, differences"] == [
        "| three things | 1 | 9 | 4 | 8 | R = 2, shift over R = 1 | 2 | +0.050 | -0.585 … +0.685 |",
        "| three things | 1 | 9 | 4 | 8 | R = 1, twice the layers over R = 1 | 2 | +0.050 | -0.585 … +0.685 |",
        "| three things | 1 | 9 | 4 | 8 | R = 1, twice the layers over R = 2, shift | 2 | +0.000 | +0.000 … +0.000 |",
    ]
    assert found["State tracking, learned offsets"] == []
    tracking[0] |= {"shift": "learned", "offset_shares": [[0.9, 0.4], [0.1, 0.6]]}
    (folder / "tracking.json").write_text(json.dumps(tracking))
    assert sections(folder)["State tracking, learned offsets"] == [
        "| three things | R = 2, learned offset | 1 | 0.650 0.350 | 0.600 | 50.0% |"
    ]


def test_missing_runs_are_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*runs\.json"):
        report.main(["--folder", str(tmp_path)])
    (tmp_path / "runs.json").write_text("[]")
    with pytest.raises(SystemExit, match="has no runs"):
        report.main(["--folder", str(tmp_path)])
