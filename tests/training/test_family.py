# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The tiny family: matched runs, their tables, and that no run is trained twice."""

import dataclasses
import itertools
import json
import math

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


pytest.importorskip(
    "accelerate", reason="Trainer needs accelerate: pip install '.[training]' in a checkout of iquest-plt"
)
family = pytest.importorskip("iquest_plt.training.family")


def metrics(loops, shift, seed, bits, elastic=""):
    return {
        "elastic": elastic,
        "loops": loops,
        "shift": shift,
        "seed": seed,
        "bits_per_byte": {str(r): bits + r / 10 for r in (1, 2, 3, 4)},
    }


def test_intervals():
    """Compares with values computed by hand: mean 2, standard deviation 1, t(2) = 4.303."""
    mean, half = family.mean_and_interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.303 / math.sqrt(3)))
    assert family.mean_and_interval([5.0]) == (5.0, math.inf)


def test_the_table_keeps_variants_apart():
    runs = [metrics(1, True, 0, 3.0), metrics(1, True, 1, 3.2), metrics(2, True, 0, 2.0), metrics(2, False, 0, 1.0)]
    lines = family.table([metrics(2, True, 0, 4.0, "draws"), *runs]).splitlines()
    assert lines[2:] == [
        "| R = 1 | 2 | **3.200 ± 1.271** | 3.300 | 3.400 | 3.500 |",  # mean of 3.1 and 3.3
        "| R = 2, shift | 1 | 2.100 | **2.200 ± inf** | 2.300 | 2.400 |",
        "| R = 2, no shift | 1 | 1.100 | **1.200 ± inf** | 1.300 | 1.400 |",
        "| elastic to R = 2, draws | 1 | **4.100 ± inf** | **4.200 ± inf** | 4.300 | 4.400 |",
    ]


def test_differences_are_paired_by_seed():
    """Seeds differ much, but the effect is the same in each: only paired differences have narrow intervals."""
    runs = []
    for seed, level in enumerate((1.0, 5.0, 9.0)):
        runs += [metrics(1, True, seed, level), metrics(2, True, seed, level - 0.3)]
        runs += [metrics(2, False, seed, level - 0.4), metrics(2, True, seed, level + 0.05, "weights")]
    runs.append(metrics(2, True, 3, 100.0))  # a seed that the others lack
    assert family.gaps(runs).splitlines()[2:] == [
        "| R = 2, shift, over R = 1 | -0.200 ± 0.000 |",
        "| R = 2, no shift, over R = 1 | -0.300 ± 0.000 |",
        "| R = 2, no shift over shift | -0.100 ± 0.000 |",
        "| elastic to R = 2, weights, run with R = 1, over R = 1 alone | +0.050 ± 0.000 |",
        "| elastic to R = 2, weights, run with R = 2, over R = 2 alone | +0.350 ± 0.000 |",
    ]


def test_runs_differ_only_in_loops_and_shift():
    variants = family.Variant("", 1, True), family.Variant("", 4, False)
    one, other = (family.recipe_of(variant, 7, 10_000, 64, 500) for variant in variants)
    assert {name for name in vars(one) if getattr(one, name) != getattr(other, name)} == {"model"}
    differing = {name for name in one.model if one.model[name] != other.model[name]}
    assert differing == {"plt_num_loops", "plt_cross_loop_shift"}


def test_a_family_is_trained_once(library, tmp_path, capsys, monkeypatch):
    recipe_of, changes = family.recipe_of, {"heldout_share": 0.4, "log_steps": 1, "packages": ()}
    monkeypatch.setattr(family, "recipe_of", lambda *args: dataclasses.replace(recipe_of(*args), **changes))
    arguments = f"--out {tmp_path} --tokens 4096 --hidden 64 --vocab 600 --seeds 1 --loops 1 2 --texts 1".split()
    family.main(arguments, library)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == 5
    found = json.loads((tmp_path / "metrics.json").read_text())
    variants = [(entry["elastic"], entry["loops"], entry["shift"]) for entry in found]
    assert variants == [("", 1, True), ("", 2, True), ("", 2, False), ("weights", 2, True), ("draws", 2, True)]
    assert all(0 < bits < 20 for entry in found for bits in entry["bits_per_byte"].values())
    folders = sorted(tmp_path.glob("r*/model"))
    weights = [load_file(folder / "model.safetensors")["model.norm.weight"] for folder in folders]
    assert len(weights) == 5 and not any(one.equal(other) for one, other in itertools.combinations(weights, 2))
    report = (tmp_path / "family.md").read_text()
    assert report.count("\n") == 2 + 5 + 1 + 2 + 7 and (tmp_path / "family.png").stat().st_size > 10_000
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "r2-no-shift-seed0" / "model")
    assert model.config.plt_num_loops == 2 and not model.config.plt_cross_loop_shift
    assert not list(tmp_path.glob("*/checkpoint-*"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("r*/**/*")}
    for other in (["--tokens", "6144"], ["--texts", "2"]):
        with pytest.raises(SystemExit, match="r1-seed0 has a run with other options"):
            family.main([*arguments, *other], library)
    family.main(arguments, library)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("r*/**/*")} == before

    def fail(*args):
        raise TypeError("no picture")

    monkeypatch.setattr(family, "draw", fail)
    family.main(arguments, library)
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["runs"] == 5
    assert "family.png was not drawn (TypeError: no picture)" in captured.err
    (tmp_path / "r1-seed0" / "metrics.json").write_text('{"texts": 1, "bits')
    with pytest.raises(SystemExit, match=r"metrics\.json cannot be read"):
        family.main(arguments, library)


def test_arguments_are_checked(tmp_path, capsys):
    for wrong in (
        "--hidden 100",
        "--seeds 0",
        "--seeds 11",
        "--loops 0",
        "--loops 5",
        "--texts 0",
        "--tokens 9",
        "--tokens 20479",
    ):
        with pytest.raises(SystemExit, match="2"):
            family.main(["--out", str(tmp_path), *wrong.split()])
        assert "error: --" in capsys.readouterr().err
