# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What belongs to the chat format beside the template: its form for training, and the tokenizer's configuration."""

from typing import Any

from .tool_calls import RESPONSE_TEMPLATE


TOKENIZER_FILE = "tokenization/tokenization_plt.py"  # goes with a model folder that `tokenizer_config_fields` points to
_MARKS = {f"{{#- {word} -#}}": f"{{%- {word} -%}}" for word in ("generation", "endgeneration")}


def training_chat_template(template: str) -> str:
    """`chat_template.jinja` with tags around what the assistant wrote, for a loss on that alone.

    It renders the same text, by Transformers only: `tokenizer.apply_chat_template(messages, chat_template=…,
    return_dict=True, return_assistant_tokens_mask=True)` gives `assistant_masks`, 1 on the assistant's content, tool
    calls and `<|im_end|>`.

    Raises ValueError if the template does not mark the assistant's text, as `chat_template.jinja` does, by comments.
    """
    for comment, tag in _MARKS.items():
        if template.count(comment) != 1:
            raise ValueError(f"The template must have the comment {comment} once: take chat_template.jinja.")
        template = template.replace(comment, tag)
    return template


def tokenizer_config_fields() -> dict[str, Any]:
    """What tokenizer_config.json says beside the special tokens, in a folder that has a copy of TOKENIZER_FILE.

    With this package imported the class is found by its name, without it through `auto_map` as remote code. Who wants
    neither loads the same ids by `PreTrainedTokenizerFast.from_pretrained`.
    """
    return {
        "tokenizer_class": "IQuestPLTCoderTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization/tokenization_plt.IQuestPLTCoderTokenizer"]},
        "response_template": RESPONSE_TEMPLATE,
    }
