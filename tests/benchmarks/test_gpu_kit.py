# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The GPU kit runs end to end at toy size on a CPU, and decode steps do not wait for the device."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, StaticCache

from iquest_plt.benchmarks.gpu import right, roofline
from iquest_plt.benchmarks.gpu.stage import Stage
from iquest_plt.benchmarks.gpu.syncs import synchronisations
from iquest_plt.benchmarks.gpu.table import write_table
from iquest_plt.compat_plt import CACHE_NAME


CPU = torch.device("cpu")


def test_smoke(tmp_path):
    """Runs all stages and cases in their own processes: none fails, none is left out, and all results are right."""
    command = [sys.executable, "-m", "iquest_plt.benchmarks.gpu", "--smoke", "--minutes", "8", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert results.keys() == {"right", "decode", "drafts", "prompt", "train", "small_models"}
    for result in results.values():
        assert result["cases"]
        for name, case in result["cases"].items():
            assert "error" not in case and "left out" not in case, f"{name}: {case}"
            assert case.get("right", True), f"{name}: {case}"
    assert len(results["right"]["cases"]) >= 11
    assert len(results["drafts"]["cases"]) == 18
    table = (tmp_path / "gpu.md").read_text()
    assert "**right**" in table and "WRONG" not in table and "| captured R=2 batch=1" in table


def test_a_failed_case_is_recorded_and_the_next_runs(tmp_path):
    stage = Stage("decode", tmp_path / "decode.json", seconds=60, smoke=True)

    def fails():
        raise RuntimeError("no kernel image")

    assert stage.run("first", fails) is None
    assert "no kernel image" in json.loads((tmp_path / "decode.json").read_text())["cases"]["first"]["error"]
    assert stage.run("R=1", lambda: {"ms": 2.0}) == {"ms": 2.0}
    assert stage.run("late", lambda: {"ms": 1.0}, seconds=1000) is None
    cases = json.loads((tmp_path / "decode.json").read_text())["cases"]
    assert cases["R=1"]["ms"] == 2.0 and "left out" in cases["late"]
    table = write_table(tmp_path)
    assert "failed, RuntimeError: no kernel image" in table and "| R=1 | 2.0 | 1.000 |" in table


def test_a_stage_runs_only_the_selected_cases(tmp_path):
    stage = Stage("right", tmp_path / "right.json", seconds=60, smoke=True, only=("flex",))
    assert stage.run("eager", lambda: {"right": True}) is None
    assert stage.run("flex, float32", lambda: {"right": True})
    assert stage.result["cases"].keys() == {"flex, float32"}


@pytest.mark.core
@pytest.mark.parametrize("num_loops", [1, 2, 4])
@pytest.mark.parametrize("padding", [None, 0, 9])
def test_a_decode_step_waits_for_the_device_at_most_once(num_loops, padding, tmp_path):
    model = right.small_model(Stage("right", tmp_path / "right.json", 60, smoke=True))
    ids = torch.randint(512, (2, 81))
    mask = None if padding is None else torch.ones_like(ids)
    if padding:
        mask[0, :padding] = 0
    arguments = {CACHE_NAME: DynamicCache(config=model.config), "num_loops": num_loops, "use_cache": True}
    with torch.no_grad():
        model(ids[:, :80], attention_mask=None if mask is None else mask[:, :80], **arguments)
        with synchronisations(CPU) as places:
            model(ids[:, 80:], attention_mask=mask, **arguments)
    assert len(places) <= (mask is not None), places


@pytest.mark.core
@pytest.mark.parametrize("num_loops", [1, 2])
def test_a_step_with_a_static_cache_never_waits(num_loops, tmp_path):
    """This is required to capture the step in a CUDA graph."""
    model = right.small_model(Stage("right", tmp_path / "right.json", 60, smoke=True))
    cache = StaticCache(config=model.config, max_cache_len=100)
    arguments = {CACHE_NAME: cache, "num_loops": num_loops, "use_cache": True}
    with torch.no_grad():
        model(torch.randint(512, (2, 80)), **arguments)
        with synchronisations(CPU) as places:
            model(torch.randint(512, (2, 1)), **arguments)
    assert places == []


def test_operations_that_make_the_host_wait_are_counted():
    tensor = torch.arange(4)
    with synchronisations(CPU) as places:
        assert bool((tensor >= 0).all())
        tensor.sum().item()
        tensor.tolist()
        tensor[tensor > 1]
        tensor[1:] + 1
        torch.nonzero(tensor)
    assert places == ["__bool__", "item", "tolist", "__getitem__", "nonzero"]


def test_the_committed_roofline_matches_the_code(capsys):
    roofline.main()
    committed = Path(roofline.__file__).parents[1] / "gpu_expected.md"
    assert capsys.readouterr().out == committed.read_text()


def test_timing_includes_all_the_work():
    from iquest_plt.benchmarks.gpu.stage import seconds_each

    assert 0.01 <= seconds_each(lambda: time.sleep(0.01), CPU, count=3) < 0.5
