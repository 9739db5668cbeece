# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration: the vendor's defaults, both spellings of the rotary settings, and rejected values."""

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
def test_invalid_models_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        IQuestPLTCoderConfig(**fields)


# Invalid values for each field of a config.json. Each of these once passed `convert` and `verify`.
WRONG = {
    "vocab_size": ["97", 97.0, -1, True, [97], 2**63],
    "hidden_size": ["32", 32.5],
    "intermediate_size": ["48", None],
    "num_hidden_layers": ["3", 10**9],
    "num_attention_heads": ["4", None],
    "num_key_value_heads": ["2", [2]],
    "head_dim": ["8", 8.0, 10**9],
    "hidden_act": ["sillu", 3, None, ["silu"]],
    "max_position_embeddings": ["512", 1e9],
    "initializer_range": ["0.02", -1.0, float("nan"), None],
    "rms_norm_eps": ["1e-5", 0, -1e-5, [1e-5], None, True, float("inf"), 10**400],
    "use_cache": ["true", 1, None],
    "pad_token_id": ["0", -2, 1.0, [0], True],
    "bos_token_id": ["1", -1, 1.0, [1]],
    "eos_token_id": ["2", -1, [2, "3"], [[2]], {"id": 2}],
    "tie_word_embeddings": ["false", 0],
    "attention_bias": ["false", 0],
    "attention_dropout": ["0", -0.1, 1.0],
    "mlp_bias": ["false", None],
    "plt_num_loops": ["2", 1001, 1000000, [2], None],
    "plt_window_size": [[10**20, 0], "64", {"left": 64}, [True, 0]],
    "plt_emb_scale": [[1.0], True],
    "plt_cross_loop_shift": ["shifted", 1, None, ["mixed"]],
    "plt_loop_attention": ["all", ["gated"], None],
    "rope_parameters": ["default", [1]],
    "rope_scaling": ["linear", [1]],
    "rope_theta": ["10000", 0, True, None],
    "partial_rotary_factor": ["1", 0],
    "original_max_position_embeddings": ["512", 512.5],
    "dtype": ["floaty", "nn", 32, ["float32"]],
    "torch_dtype": ["floaty", 32],
    "architectures": ["IQuestPLTCoderForCausalLM", [1]],
    "id2label": [["a"], "a"],
    "label2id": [["a"], 1],
    "num_labels": ["2", 10**9, -1],
    "output_hidden_states": ["yes", 1],
    "return_dict": ["yes", 1],
    "is_encoder_decoder": ["no", None],
    "chunk_size_feed_forward": ["1", -1, 0.5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_field_of_the_wrong_type_is_named(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be ") as error:
        IQuestPLTCoderConfig(**{name: value})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("rope", "name"),
    [
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "dynamic", "factor": [2.0]}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": "32"}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": "1"}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": "no"}, "truncate"),
        ({"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0], "long_factor": ["1"]}, "long_factor"),
        ({"rope_type": "longrope", "factor": 4.0, "short_factor": "1", "long_factor": [1.0]}, "short_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": "512"}, "original_max_position"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": "1", "high_freq_factor": 4.0},
            "low_freq_factor",
        ),
    ],
)
def test_a_rotary_setting_of_the_wrong_type_is_named(rope, name):
    with pytest.raises(ValueError, match=rf"`rope_parameters\['{name}"):
        IQuestPLTCoderConfig(rope_parameters=rope)


@pytest.mark.parametrize("rope_type", [["linear"], {"a": 1}, 3, None, "x" * 10**6])
def test_a_rotary_type_that_is_not_a_name_is_rejected(rope_type):
    with pytest.raises(ValueError, match="Unknown rope type") as error:
        IQuestPLTCoderConfig(rope_parameters={"rope_type": rope_type, "factor": 2.0})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 10000},  # an integer is a number
        {"attention_dropout": 0, "plt_emb_scale": 1, "initializer_range": 0},
        {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": None},
        {"eos_token_id": None},
        {"num_key_value_heads": None, "head_dim": None},
        {"rope_scaling": None, "rope_theta": 1e6, "pretraining_tp": 1, "head_dim": 128},
        {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": None, "mscale": 1.0}},
        {"torch_dtype": "bfloat16"},
        {"dtype": "float32", "architectures": ["IQuestLoopCoderForCausalLM"]},
        {"num_labels": 1, "problem_type": "regression"},
        {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}},
        {"plt_num_loops": 1000},
        {"max_position_embeddings": 10_000_000},
    ],
)
def test_values_found_in_checkpoints_are_accepted(fields):
    IQuestPLTCoderConfig(**fields)


def test_a_padding_id_of_minus_one_means_none():
    assert IQuestPLTCoderConfig(pad_token_id=-1).pad_token_id is None


def test_a_field_that_is_set_later_is_also_checked():
    config = IQuestPLTCoderConfig()
    config.rms_norm_eps = "1e-5"
    with pytest.raises(ValueError, match="`rms_norm_eps` must be a positive number"):
        config.validate()
    with pytest.raises(ValueError, match="`num_loops` must be an integer >= 1 and <= 1000"):
        config.check_num_loops(1001)
