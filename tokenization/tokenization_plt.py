# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of LoopCoder-V2: the library's fast tokenizer, whose chats also go where a tensor was expected."""

import functools
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerFast


class ChatEncoding(BatchEncoding):
    """
    What `apply_chat_template` returns with `return_tensors`: the library's `BatchEncoding`, which besides has the shape
    and the rows of its `input_ids`. In Transformers 4 the method returned `input_ids` alone, and code written for that
    reads `inputs.shape[-1]` or `inputs[0]`. `model.generate(inputs)` and `model.generate(**inputs)` both take it.
    """

    def __getitem__(self, item):
        """The field of that name, or what else is asked for of `input_ids`."""
        return super().__getitem__(item) if isinstance(item, str) else self.input_ids[item]

    @property
    def shape(self) -> Any:
        return self.input_ids.shape

    @property
    def device(self) -> Any:
        return self.input_ids.device

    def size(self, *args) -> Any:
        return self.input_ids.size(*args)


class IQuestPLTCoderTokenizer(PreTrainedTokenizerFast):
    """
    `PreTrainedTokenizerFast` and nothing else but for the type of what `apply_chat_template` returns with
    `return_tensors`: see [`ChatEncoding`].
    """

    @functools.wraps(PreTrainedTokenizerFast.apply_chat_template)
    def apply_chat_template(self, *args, **kwargs) -> Any:
        outputs = super().apply_chat_template(*args, **kwargs)
        if isinstance(outputs, BatchEncoding) and hasattr(outputs.get("input_ids"), "shape"):
            return ChatEncoding(outputs.data, outputs.encodings, n_sequences=outputs.n_sequences)
        return outputs


__all__ = ["IQuestPLTCoderTokenizer"]
