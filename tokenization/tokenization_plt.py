# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of LoopCoder-V2: the library's fast tokenizer, whose encoded chats can also be used as a tensor."""

import functools
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerFast


class ChatEncoding(BatchEncoding):
    """
    The result of `apply_chat_template` with `return_tensors`: a `BatchEncoding` that also has the shape and rows of its
    `input_ids`. In Transformers 4 the method returned only `input_ids`, and code written for it reads
    `inputs.shape[-1]` or `inputs[0]`. Both `model.generate(inputs)` and `model.generate(**inputs)` accept it.
    """

    def __getitem__(self, item):
        """Returns the field of that name. Any other index applies to `input_ids`."""
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
    `PreTrainedTokenizerFast`, except that `apply_chat_template` with `return_tensors` returns a [`ChatEncoding`].
    """

    @functools.wraps(PreTrainedTokenizerFast.apply_chat_template)
    def apply_chat_template(self, *args, **kwargs) -> Any:
        outputs = super().apply_chat_template(*args, **kwargs)
        if isinstance(outputs, BatchEncoding) and hasattr(outputs.get("input_ids"), "shape"):
            return ChatEncoding(outputs.data, outputs.encodings, n_sequences=outputs.n_sequences)
        return outputs


__all__ = ["IQuestPLTCoderTokenizer"]
