# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The family's training, end to end with tiny models on random tokens, and then its report."""

import json
import shutil

import numpy as np
import pytest
from paths import ROOT


for module in ("accelerate", "scipy", "matplotlib"):
    pytest.importorskip(module, reason="training needs packages: pip install '.[training]'")
train = pytest.importorskip("iquest_plt.science.train")
report = pytest.importorskip("iquest_plt.science.report")

VOCAB = 8192  # of the tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    np.save(folder / "train.npy", generator.integers(VOCAB, size=4000).astype(np.uint16))
    np.save(folder / "heldout.npy", generator.integers(VOCAB, size=10 * 64 + 5).astype(np.uint16))
    totals = {"heldout": {"files": 1, "bytes": 2000, "tokens": 500}}
    (folder / "data_manifest.json").write_text(json.dumps({"totals": totals}))
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "checkpoints" / "small" / name, folder / "tokenizer")
    return folder


def test_a_smoke_run_goes_on_and_is_reported(data, tmp_path):
    cells = ["R = 1", "R = 2, shift", "R = 2, no shift", "R = 3, shift, elastic"]
    options = [
        "--data",
        str(data),
        "--out",
        str(tmp_path),
        "--smoke",
        "--device",
        "cpu",
        "--tokens",
        "512",
        "--seeds",
        "1",
    ]
    train.main([*options, "--cells", *cells[:2], "--commit", "abc"])
    first = json.loads((tmp_path / "runs.json").read_text())
    train.main([*options, "--cells", *cells, "--commit", "def", "--keep", cells[2]])
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert runs[:2] == first  # finished runs are kept
    assert [run["name"] for run in runs] == cells and runs[2]["environment"]["commit"] == "def"
    kept = tmp_path / "R=2-noshift-seed0"
    assert {"model.safetensors", "tokenizer.json", "data_manifest.json"} <= {file.name for file in kept.iterdir()}
    for run in runs:
        heldout = run["heldout"]
        assert heldout["tokens_per_row"] == 63
        assert [len(nats) for nats in heldout["nats"]] == [10] * 5
        loss = sum(heldout["nats"][run["loops"] - 1]) / 630
        assert loss == pytest.approx(np.log(VOCAB), abs=1.0)  # random tokens cannot be predicted
        assert run["tokens"] == 512 and run["environment"]["heldout_bytes_per_token"] == 4.0
    assert [run["elastic"] for run in runs] == [False, False, False, True]
    # One seed has the same initial weights and rows, so only the loops differ.
    assert runs[0]["heldout"]["nats"][0] != runs[1]["heldout"]["nats"][0]
    assert runs[0]["environment"]["data_sha256"] == runs[2]["environment"]["data_sha256"]
    report.main(["--folder", str(tmp_path)])
    assert "| second loop, shift | 1 |" in (tmp_path / "tables.md").read_text()


def test_too_little_time_leaves_runs_out(data, tmp_path, capsys):
    options = ["--data", str(data), "--out", str(tmp_path), "--smoke", "--device", "cpu", "--minutes", "0"]
    train.main([*options, "--cells", "R = 1", "--seeds", "1"])
    assert "R = 1, seed 0: left out, too little time" in capsys.readouterr().out
    assert not (tmp_path / "runs.json").exists()


def test_data_are_made_once(library, tmp_path, capsys):
    data = tmp_path / "data"
    options = ["--data", str(data), "--out", str(tmp_path), "--shape", "small", "--smoke", "--device", "cpu"]
    options += ["--tokens", "512", "--seeds", "1", "--cells", "R = 1"]
    train.main([*options, "--prepare"], library)
    (run,) = json.loads((tmp_path / "runs.json").read_text())
    totals = json.loads((data / "data_manifest.json").read_text())["totals"]
    assert run["environment"]["stream_tokens"] == totals["train"]["tokens"]
    assert run["recipe"]["vocab_size"] == 2048
    made = (data / "train.npy").stat().st_mtime_ns
    train.main([*options, "--prepare"])  # would otherwise read the whole standard library
    assert (data / "train.npy").stat().st_mtime_ns == made


def test_unknown_cells_and_missing_data_are_errors(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--data", str(tmp_path), "--out", str(tmp_path), "--cells", "R = 9"])
    assert "unknown cell 'R = 9'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"holds no data\. Add --prepare"):
        train.main(["--data", str(tmp_path), "--out", str(tmp_path)])
