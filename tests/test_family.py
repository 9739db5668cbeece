# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The tiny family: matched runs, their table, and that nothing is trained twice."""

import dataclasses
import json
import math

import pytest


pytest.importorskip("accelerate", reason="Trainer needs accelerate: pip install 'iquest-plt[training]'")
family = pytest.importorskip("iquest_plt.training.family")


def metrics(loops, shift, seed, bits):
    return {
        "loops": loops,
        "shift": shift,
        "seed": seed,
        "bits_per_byte": {str(r): bits + r / 10 for r in (1, 2, 3, 4)},
    }


def test_intervals():
    """Against numbers worked out by hand: mean 2, standard deviation 1, t(2) = 4.303."""
    mean, half = family.mean_and_interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.303 / math.sqrt(3)))
    assert family.mean_and_interval([5.0]) == (5.0, math.inf)


def test_the_table_keeps_configurations_apart():
    runs = [metrics(1, True, 0, 3.0), metrics(1, True, 1, 3.2), metrics(2, True, 0, 2.0), metrics(2, False, 0, 1.0)]
    lines = family.table(runs).splitlines()
    assert lines[2].startswith("| R = 1 | 2 | **3.200 ± 1.271** | 3.200 | 3.300 |")  # mean of 3.1 and 3.3
    assert lines[3].startswith("| R = 2, shift | 1 | **2.200 ± inf** |")
    assert lines[4].startswith("| R = 2, no shift | 1 | **1.200 ± inf** |")


def test_runs_differ_in_loops_and_shift_alone():
    one, other = (family.recipe_of(loops, shift, 7, 10_000, 64, 500) for loops, shift in ((1, True), (4, False)))
    assert {name for name in vars(one) if getattr(one, name) != getattr(other, name)} == {"model"}
    differing = {name for name in one.model if one.model[name] != other.model[name]}
    assert differing == {"plt_num_loops", "plt_cross_loop_shift"}


def test_a_family_is_trained_once(library, tmp_path, capsys, monkeypatch):
    recipe_of = family.recipe_of
    monkeypatch.setattr(
        family, "recipe_of", lambda *args: dataclasses.replace(recipe_of(*args), heldout_share=0.4, log_steps=1)
    )
    arguments = f"--out {tmp_path} --tokens 4096 --hidden 64 --vocab 600 --seeds 1 --loops 1 2 --texts 1".split()
    family.main(arguments, library)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == 3
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert [(entry["loops"], entry["shift"]) for entry in found] == [(1, True), (2, True), (2, False)]
    assert all(0 < bits < 20 for entry in found for bits in entry["bits_per_byte"].values())
    assert all(len(entry["losses"]) >= 1 for entry in found)
    assert (tmp_path / "family.md").read_text().count("\n") == 5 and (tmp_path / "family.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("r*/**/*")}
    family.main(arguments, library)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("r*/**/*")} == before


def test_arguments_are_checked(tmp_path, capsys):
    for wrong in ("--hidden 100", "--seeds 0", "--seeds 11", "--loops 0", "--texts 0"):
        with pytest.raises(SystemExit, match="2"):
            family.main(["--out", str(tmp_path), *wrong.split()])
        assert "error: --" in capsys.readouterr().err
