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
"""The configuration: the defaults of the vendor, both spellings of the rotary settings, and what is refused."""

import json

import pytest
from transformers import AutoConfig

from iquest_plt import IQuestPLTCoderConfig


pytestmark = pytest.mark.core


def test_defaults_are_those_a_checkpoint_may_rely_on():
    config = IQuestPLTCoderConfig()
    assert config.vocab_size == 75904
    assert config.eos_token_id == [2, 75864, 75869]
    assert config.bos_token_id == 1 and config.pad_token_id is None
    assert (config.plt_num_loops, config.plt_window_size) == (2, [64, 0])
    assert config.plt_emb_scale is None and config.plt_hidden_scale is None
    assert config.plt_normalize_per_loop is True and config.plt_gate_use_hidden_states is False
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}


def test_defaults_are_not_shared_between_instances():
    IQuestPLTCoderConfig().plt_window_size[0] = 7
    IQuestPLTCoderConfig().eos_token_id.append(7)
    assert IQuestPLTCoderConfig().plt_window_size == [64, 0]
    assert IQuestPLTCoderConfig().eos_token_id == [2, 75864, 75869]


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_rotary_settings_old_and_new(fields):
    rope = IQuestPLTCoderConfig(**fields).rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 2.0, 1e4)


def test_round_trip_through_a_file(tmp_path):
    config = IQuestPLTCoderConfig(plt_num_loops=3, plt_emb_scale=0.5, eos_token_id=None, rope_theta=1e4)
    config.save_pretrained(tmp_path)
    assert "layer_types" not in json.loads((tmp_path / "config.json").read_text())
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is IQuestPLTCoderConfig
    ignored = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in loaded.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 10, "num_key_value_heads": 4}, "multiple of `num_key_value_heads`"),
        ({"hidden_size": 100, "num_attention_heads": 3, "num_key_value_heads": 3}, "multiple of `num_attention_heads`"),
        ({"hidden_size": 60, "num_attention_heads": 4, "num_key_value_heads": 2}, "`head_dim` must be even"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be an integer >= 1"),
        ({"hidden_size": None}, "`hidden_size` must be an integer >= 1"),
        ({"plt_num_loops": 0}, "`plt_num_loops` must be an integer >= 1"),
        ({"plt_num_loops": 1.5}, "`plt_num_loops` must be an integer >= 1"),
        ({"plt_num_loops": True}, "`plt_num_loops` must be an integer >= 1"),
        ({"plt_window_size": [64]}, r"`plt_window_size` must be `\[left, 0\]`"),
        ({"plt_window_size": [64, 64]}, r"`plt_window_size` must be `\[left, 0\]`"),
        ({"plt_window_size": [-1, 0]}, r"`plt_window_size` must be `\[left, 0\]`"),
        ({"plt_window_size": [6.5, 0]}, r"`plt_window_size` must be `\[left, 0\]`"),
        ({"plt_window_size": 64}, r"`plt_window_size` must be `\[left, 0\]`"),
        ({"plt_emb_scale": float("nan")}, "`plt_emb_scale` must be a finite number"),
        ({"plt_hidden_scale": float("inf")}, "`plt_hidden_scale` must be a finite number"),
        ({"plt_hidden_scale": "1"}, "`plt_hidden_scale` must be a finite number"),
        ({"plt_normalize_per_loop": 1}, "`plt_normalize_per_loop` must be true or false"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "Unknown rope type 'spiral'"),
    ],
)
def test_what_cannot_be_built_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        IQuestPLTCoderConfig(**fields)
