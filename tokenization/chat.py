# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The chat template's variant for training, and the tokenizer's configuration."""

from typing import Any

from .tool_calls import RESPONSE_TEMPLATE


TOKENIZER_FILE = "tokenization/tokenization_plt.py"  # part of a model folder that uses `tokenizer_config_fields`
_MARKS = {f"{{#- {word} -#}}": f"{{%- {word} -%}}" for word in ("generation", "endgeneration")}


def training_chat_template(template: str) -> str:
    """Returns `chat_template.jinja` with tags around the assistant's text, for a loss on only that text.

    It renders the same text, but only in Transformers: `tokenizer.apply_chat_template(messages, chat_template=…,
    return_dict=True, return_assistant_tokens_mask=True)` returns `assistant_masks`, which is 1 on the assistant's
    content, tool calls and `<|im_end|>`.

    Raises ValueError if the template does not mark the assistant's text with the comments of `chat_template.jinja`.
    """
    for comment, tag in _MARKS.items():
        if template.count(comment) != 1:
            raise ValueError(
                f"The template must contain the comment {comment} exactly once. Start from chat_template.jinja."
            )
        template = template.replace(comment, tag)
    return template


def tokenizer_config_fields() -> dict[str, Any]:
    """Returns the tokenizer_config.json fields, except special tokens, for a folder with a copy of TOKENIZER_FILE.

    If this package is imported, the class is found by name, otherwise as remote code through `auto_map`.
    `PreTrainedTokenizerFast.from_pretrained` gives the same ids without either.
    """
    return {
        "tokenizer_class": "IQuestPLTCoderTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization/tokenization_plt.IQuestPLTCoderTokenizer"]},
        "response_template": RESPONSE_TEMPLATE,
    }
