# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs at a small size and reports its results; pictures are drawn from the committed results."""

import importlib
import json
import os
import sys

import pytest
import torch
from paths import ROOT
from paths import SMALL as CHECKPOINT
from tiny import tiny_config

from iquest_plt.benchmarks import common
from iquest_plt.packed_kernels_plt import installed_kernels


SMALL = "--hidden 128 --layers 2"
RUNS = {
    "decode": f"{SMALL} --batch 1 2 --prompt 5 --tokens 2 --loops 1 2",
    "prefill": f"{SMALL} --lengths 8 200 --longest-all 8 --loops 1 2 --repeats 1",
    "memory": f"{SMALL} --lengths 16 300 --loops 1 2 --longest-prompt 16",
    "training": f"{SMALL} --length 8 --loops 1 2 --repeats 1",
    "full_size": "--prompt 5 --tokens 2 --loops 1 2 --sequence",
    "profile_decode": f"{SMALL} --prompt 5 --steps 2 --loops 1 2",
    "quantized": f"{SMALL} --prompt 5 --tokens 2 --loops 1 2",
    "staircase": f"{SMALL} --tokens 40 --loops 1 2",
}
ROWS = {
    "decode": ["Llama", 1, 2, 2] * 2,
    "prefill": ["Llama", 1, 2, 2, "Llama", 1, 2],
    "memory": ["Llama", 1, 2] * 2,
    "training": ["Llama", 1, 2] * 2,
    "full_size": ["Llama", 1, 2, 2],
    "profile_decode": ["Llama", 1, 2],
    "quantized": [1, 2] * (1 + 2 * len(installed_kernels())),  # bf16, and two kinds for all kernels
    "staircase": [1] * 6 + [2] * 6,
}


def run(name: str, arguments: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    importlib.import_module(f"iquest_plt.benchmarks.{name}").main()


@pytest.mark.parametrize("name", RUNS)
def test_benchmark(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", os.environ.get("THP_MEM_ALLOC_ENABLE", "0"))
    if name == "training":  # it cannot be undone and would affect memory tests
        monkeypatch.setattr("iquest_plt.benchmarks.training.keep_freed_memory", lambda: None)
    arguments = RUNS[name]
    if name == "full_size":
        tiny_config().save_pretrained(tmp_path)
        arguments += f" --config {tmp_path}"
    run(name, f"{arguments} --save here --device cpu", monkeypatch)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["benchmark"] == name
    assert [result["loops"] for result in document["results"]] == ROWS[name]
    measured = ("ratio", "ratio_llama", "ms_per_token", "ms", "ms_per_step", "cache_bytes", "step", "matrix products")
    assert all(result[name] > 0 for result in document["results"] for name in measured if name in result)
    assert torch.is_grad_enabled()
    (saved,) = (tmp_path / "results").glob("*-here.json")
    assert json.loads(saved.read_text()) == document
    table = saved.with_suffix(".md").read_text()
    assert f"python -m iquest_plt.benchmarks.{name} " in table
    assert table.count("\n| ") == 2 + len(document["results"])


def test_memory_of_the_cache_matches_the_formula(monkeypatch, capsys):
    run("memory", RUNS["memory"], monkeypatch)
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    for result in results:  # LoopCoder-V2: 57,344 bytes per token, 3.7 MB and a carry for the second loop
        further = 57_344 * min(result["length"], 64) + 10_240 if result["loops"] == 2 else 0
        assert result["cache_bytes"] == 57_344 * result["length"] + further


def test_pictures(monkeypatch, tmp_path, capsys):
    run("plot", f"--out {tmp_path}", monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {"decode.png", "prefill.png", "memory.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


@pytest.mark.slow
def test_rehearsal(monkeypatch, tmp_path, capsys):
    """Runs all steps from a vendor's checkpoint to text, at a small size."""
    (tmp_path / "work").mkdir()
    tiny_config(vocab_size=8192, dtype=torch.bfloat16).save_pretrained(tmp_path)
    monkeypatch.setattr("iquest_plt.benchmarks.rehearsal.SHARD_BYTES", 600_000)
    run("rehearsal", f"--work {tmp_path / 'work'} --config {tmp_path} --tokens 3", monkeypatch)
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [result["step"] for result in results] == ["write the source", "convert", "verify", "load and generate"]
    assert "39 tensors" in results[0]["result"] and "39 tensors" in results[1]["result"]
    assert results[2]["result"].endswith(" 0 problems") and results[3]["result"].startswith("3 tokens with 2 loops")
    assert not list((tmp_path / "work").iterdir())


def test_upcycling_trains_each_run_once(tmp_path, capsys, monkeypatch):
    from iquest_plt.benchmarks import upcycling

    monkeypatch.setattr(upcycling, "RUNS", {name: upcycling.RUNS[name] for name in ("two loops", "dense")})
    (tmp_path / "texts").mkdir()
    for name in ("grid_plt.py", "loops_plt.py"):
        (tmp_path / "texts" / name).write_text((ROOT / name).read_text())
    options = (
        f"--model {CHECKPOINT} --data {tmp_path}/texts --heldout {tmp_path}/texts --tokens 256 --length 64 --batch 2"
    )
    for expected in (3, 0):  # the second call finds all runs done
        upcycling.main([*options.split(), "--device", "cpu", "--lr", "1e-4", "--out", str(tmp_path / "out"), "--keep"])
        lines = capsys.readouterr().out.splitlines()
        assert sum(line in ("before training", "two loops", "dense") for line in lines) == expected
    runs = json.loads((tmp_path / "out" / "upcycling.json").read_text())["runs"]
    assert [len(run["training_loss"]) for run in runs.values()] == [0, 2, 2]
    before, two, dense = (run["heldout"] for run in runs.values())
    assert two["2"] < before["2"] and dense["1"] < before["1"]
    for name in ("two-loops", "dense"):
        kept = {file.name for file in (tmp_path / "out" / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= kept
    with pytest.raises(ValueError, match="other settings"):
        upcycling.main([*options.split(), "--device", "cpu", "--lr", "2e-3", "--out", str(tmp_path / "out")])
