# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The small checkpoint, converted for mlx-lm."""

import pytest
from paths import ROOT, SMALL


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """The small checkpoint for mlx-lm, in float32."""
    from iquest_plt.conversion.convert import convert

    folder = tmp_path_factory.mktemp("mlx") / "small"
    convert(str(SMALL), folder, to="mlx", dtype="float32")
    return folder


@pytest.fixture(scope="session")
def small(small_folder):
    """The same, loaded."""
    from mlx_models import launcher, utils

    launcher.register()
    return utils.load(str(small_folder))


@pytest.fixture(scope="session")
def mini_plt(tmp_path_factory):
    """A PLT folder with the small checkpoint's tokenizer and chat template, and random weights that run quickly."""
    from tiny import tiny_model

    folder = tmp_path_factory.mktemp("mini") / "plt"
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"num_key_value_heads": 1, "vocab_size": 8192, "plt_window_size": [8, 0], "rope_theta": 10000.0}
    model = tiny_model(initializer_range=0.1, max_position_embeddings=2048, eos_token_id=[2, 8186, 8191], **size)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((SMALL / name).read_bytes())
    (folder / "chat_template.jinja").write_bytes((ROOT / "chat_template.jinja").read_bytes())
    return folder


@pytest.fixture(scope="session")
def mini_folder(mini_plt, tmp_path_factory):
    """The same for mlx-lm."""
    from iquest_plt.conversion.convert import convert

    folder = tmp_path_factory.mktemp("mini") / "mlx"
    convert(str(mini_plt), folder, to="mlx")
    return folder


@pytest.fixture(scope="session")
def mini(mini_folder):
    """The same, loaded: the model and the tokenizer."""
    from mlx_models import launcher, utils

    launcher.register()
    return utils.load(str(mini_folder))
