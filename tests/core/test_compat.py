# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Both names of the cache, versions of Transformers, and unknown keyword arguments."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from paths import ROOT, SMALL
from tiny import TOLERANCE, distance, oracle, tiny_model, tokens
from transformers import DynamicCache
from transformers.utils import logging

from iquest_plt import PLTCache, compat_plt, inputs_plt


CACHE_NAMES = ["cache", "past_key_values"]
pytestmark = pytest.mark.core


@pytest.fixture
def warnings(caplog, monkeypatch):
    """Returns a function that lists the warnings logged during the test, including those logged once per process."""
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    inputs_plt.logger.warning_once.__func__.cache_clear()
    caplog.set_level("WARNING")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("part", ["head", "decoder"])
def test_forward_takes_the_cache_under_both_names(part, name, warnings):
    model, ids = tiny_model(), tokens(1, 9)
    step = model if part == "head" else model.model
    cache = PLTCache(model.config)
    states = []
    for piece in (ids[:, :5], ids[:, 5:6], ids[:, 6:]):
        output = step(piece, **{name: cache})
        assert output.cache is cache and output.past_key_values is cache
        states.append(output[0])
    logits = torch.cat(states, dim=1) if part == "head" else model.lm_head(torch.cat(states, dim=1))
    assert cache.get_seq_length() == 9
    assert distance(logits[0], oracle(model, ids[0])) < TOLERANCE
    assert warnings() == []


def test_two_caches_are_rejected():
    model, ids = tiny_model(), tokens(1, 3)
    caches = {name: PLTCache(model.config) for name in CACHE_NAMES}
    with pytest.raises(ValueError, match="two names for the same argument"):
        model(ids, **caches)
    with pytest.raises(ValueError, match="two names for the same argument"):
        model.generate(ids, max_new_tokens=1, **caches)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_generate_takes_the_cache_under_both_names(name, warnings):
    model, ids = tiny_model(), tokens(1, 7)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False, pad_token_id=0)
    cache = PLTCache(model.config)
    first = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0, **{name: cache})
    rest = model.generate(first, max_new_tokens=3, do_sample=False, pad_token_id=0, **{name: cache})
    assert torch.equal(rest, expected) and cache.get_seq_length() == expected.shape[1] - 1
    assert warnings() == []


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_masks_for_generate_take_the_cache_under_both_names(name):
    model, cache = tiny_model(), transformers.StaticCache(config=tiny_model().config, max_cache_len=8)
    embeds, mask = torch.empty(1, 1, 0), torch.ones(1, 1)
    masks = model.create_masks_for_generate(model.config, embeds, mask, **{name: cache})
    assert masks["global_mask"].shape[-1] == 8


class RenamedCache(type(tiny_model())):
    """Simulates a later version of the library that renames the argument again."""

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["kv_state"] = inputs.pop(compat_plt.CACHE_NAME)
        return inputs


def test_a_cache_under_an_unknown_name_is_rejected():
    model, ids = tiny_model(), tokens(1, 5)
    model.__class__ = RenamedCache
    with pytest.raises(TypeError, match=r"got a cache as `kv_state`.*`cache` or `past_key_values`"):
        model.generate(ids, max_new_tokens=4, pad_token_id=0)
    for part in (model, model.model):
        with pytest.raises(TypeError, match="kv_state"):
            part(ids, kv_state=DynamicCache(config=model.config))


def test_unknown_keywords_are_reported_once(warnings):
    model, ids = tiny_model(), tokens(1, 5)
    for _ in range(2):
        model(ids, speed="fast", token_type_ids=torch.zeros_like(ids))
    assert warnings() == ["forward() ignores arguments that this model does not read: `speed`, `token_type_ids`."]


def test_keywords_of_the_library_are_not_reported(warnings):
    model, ids = tiny_model(attention="eager"), tokens(2, 5)
    mask = torch.ones_like(ids)
    model(ids, attention_mask=mask, labels=ids, num_items_in_batch=torch.tensor(8), return_dict=True)
    model(ids, output_attentions=True, output_hidden_states=True, output_gates=True, output_window_attentions=True)
    model.generate(ids, max_new_tokens=2, pad_token_id=0, tokenizer=object())
    ends = torch.tensor([0, 5])
    model(ids[:1], cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=5, max_length_k=5, is_causal=True)
    model.generate(ids, attention_mask=mask, max_new_tokens=2, num_beams=2, pad_token_id=0)
    assert warnings() == []


# -- versions of Transformers -----------------------------------------------------------------------------------------


def import_with_version(version: str, folder: Path) -> subprocess.CompletedProcess:
    """Loads a configuration as remote code while Transformers reports another version."""
    code = f"""if True:
        import transformers
        transformers.__version__ = {version!r}
        from transformers import AutoConfig
        for _ in range(2):
            AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True)
    """
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("version", ["4.57.1", "5.0.0", "5.16.0"])
def test_an_older_version_is_rejected_with_the_required_one(version):
    result = import_with_version(version, SMALL)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and last.startswith("ImportError: This model needs Transformers >= 5.16.1, but")
    assert version in last


def test_a_newer_version_gets_one_warning():
    result = import_with_version("5.99.0.dev0", SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("was tested with Transformers 5.16.1 to 5.24, but 5.99.0.dev0 is installed") == 1


def test_the_supported_version_range_is_consistent():
    requirement = next(line for line in (ROOT / "setup.cfg").read_text().split() if line.startswith("transformers>"))
    major, minor = compat_plt.NEWEST.split(".")
    assert requirement == f"transformers>={compat_plt.OLDEST},<{major}.{int(minor) + 1}"
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("transformers=="))
    assert pinned.removeprefix("transformers==").startswith(compat_plt.NEWEST + ".")
