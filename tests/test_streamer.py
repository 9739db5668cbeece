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
"""Text as it is generated, with a tokenizer whose decoder drops the space that a text begins with."""

import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from iquest_plt.cli.streamer import TextPrinter
from iquest_plt.tokenization import spm


sentencepiece = pytest.importorskip("sentencepiece")

TEXT = "def f(x):\n    if x:\n        return 'é 😀 中文'\n\n    return  None\n \n  end"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("spm")
    library = Path(sysconfig.get_path("stdlib"))
    (path / "text").write_text("\n".join((library / f"{name}.py").read_text() for name in ("ast", "argparse")))
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "text"),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return PreTrainedTokenizerFast(tokenizer_object=spm.convert(path / "tokenizer.model"))


@pytest.mark.parametrize("cut", [1, 3, 9, 20])
def test_the_printed_text_is_what_follows_the_prompt(tokenizer, cut):
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    pieces = []
    printer = TextPrinter(tokenizer, pieces.append)
    printer.put(torch.tensor([ids[:cut]]))
    assert not pieces
    for token in ids[cut:]:
        printer.put(torch.tensor([token]))
    printer.end()
    assert "".join(pieces) == TEXT[len(tokenizer.decode(ids[:cut])) :] + "\n"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert len(pieces) > 10  # as they come


def test_a_batch_is_refused(tokenizer):
    with pytest.raises(ValueError, match="one sequence"):
        TextPrinter(tokenizer, print).put(torch.zeros(2, 3, dtype=torch.long))
