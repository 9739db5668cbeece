# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The shipped model: its golden logits, the oracle, and the numbers on its card."""

import json
import lzma
from pathlib import Path

import pytest
import torch
from paths import SMALL
from safetensors.torch import load_file
from tiny import distance, oracle
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SMALL)


def test_shape_of_the_model(model):
    assert 8e6 <= model.num_parameters() <= 15e6
    assert model.config.plt_num_loops == 2
    assert model.config.plt_window_size == [64, 0]
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@torch.no_grad()
def test_golden_logits(model, num_loops):
    golden = load_file(SMALL / "golden.safetensors")
    logits = model(golden["input_ids"], num_loops=num_loops).logits[:, golden["positions"]]
    expected = golden[f"logits_r{num_loops}"].double().numpy()
    assert distance(logits, expected) < 1e-4


@torch.no_grad()
def test_trained_weights_equal_the_oracle_past_the_window(model, tokenizer):
    text = Path(json.__file__).read_text()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :200]
    assert distance(model(ids).logits[0], oracle(model, ids[0])) < 1e-4


@torch.no_grad()
def test_greedy_text_is_the_same_cached_and_recomputed(model, tokenizer):
    """Generates 200 tokens past the window from real text with a cache, then checks them in one full pass."""
    ids = tokenizer("import os\n\n\nclass Reader:\n    def __init__(self, path):\n", return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=270, min_new_tokens=270, do_sample=False, pad_token_id=0)
    new = output[0, ids.shape[1] :]
    logits = model(output, use_cache=False).logits[0, ids.shape[1] - 1 : -1]
    logits[:, model.generation_config.eos_token_id] = -torch.inf  # like min_new_tokens
    best, chosen = logits.max(-1).values, logits.gather(-1, new[:, None])[:, 0]
    assert (best - chosen).max() < 1e-3


def test_stop_ids(model, tokenizer):
    stops = [tokenizer.convert_tokens_to_ids(t) for t in ("</s>", "<|im_end|>", "<|endoftext|>")]
    assert model.generation_config.eos_token_id == stops


def test_the_card_states_the_measured_numbers():
    heldout = json.loads((SMALL / "metrics.json").read_text())["bits_per_byte"]["all"]
    assert heldout["plt_r2"] <= 0.75 * heldout["xz_9_per_file"]  # `xz -9` on each file
    assert heldout["plt_r2"] <= 0.75 * heldout["xz_9_together"]  # `xz -9` on one archive
    card = (SMALL / "README.md").read_text()
    assert f"{heldout['plt_r2']:.3f}" in card and f"{heldout['xz_9_per_file']:.3f}" in card


def test_xz_number_can_be_recomputed():
    """Runs only on the Python version that the data came from."""
    import sysconfig

    manifest = json.loads((SMALL / "data_manifest.json").read_text())
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in manifest["files"] if file["split"] == "heldout"]
    paths = [root / file["path"] for file in files]
    if not all(p.exists() and p.stat().st_size == f["bytes"] for p, f in zip(paths, files, strict=True)):
        pytest.skip("the standard library here is another version")
    sizes = [len(lzma.compress(path.read_bytes(), preset=9)) for path in paths]
    metrics = json.loads((SMALL / "metrics.json").read_text())["bits_per_byte"]["all"]
    bits = 8 * sum(sizes) / sum(file["bytes"] for file in files)
    assert bits == pytest.approx(metrics["xz_9_per_file"], rel=0.01)
