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

import pytest
import torch

from iquest_plt.cli.streamer import TextPrinter


TEXT = "def f(x):\n    if x:\n        return 'é 😀 中文'\n\n    return  None\n \n  end"


@pytest.mark.parametrize("cut", [1, 3, 9, 20])
def test_the_printed_text_is_what_follows_the_prompt(spm_tokenizer, cut):
    ids = spm_tokenizer.encode(TEXT, add_special_tokens=False)
    pieces = []
    printer = TextPrinter(spm_tokenizer, pieces.append)
    printer.put(torch.tensor([ids[:cut]]))
    assert not pieces
    for token in ids[cut:]:
        printer.put(torch.tensor([token]))
    printer.end()
    assert "".join(pieces) == TEXT[len(spm_tokenizer.decode(ids[:cut])) :] + "\n"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert len(pieces) > 10  # as they come


def test_a_batch_is_refused(spm_tokenizer):
    with pytest.raises(ValueError, match="one sequence"):
        TextPrinter(spm_tokenizer, print).put(torch.zeros(2, 3, dtype=torch.long))
