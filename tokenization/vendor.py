# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Makes the vendor's tokenizer class fail with a clear error instead of loading wrongly."""

from transformers import PreTrainedConfig, PreTrainedTokenizerFast


class IQuestCoderTokenizer(PreTrainedTokenizerFast):
    """
    Raises an error when loaded. With a class registered for the model type, Transformers ignores the vendor's own code,
    and would silently convert `tokenizer.model` to a tokenizer with other ids.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Raises a ValueError that says how to convert the checkpoint."""
        raise ValueError(
            f"{pretrained_model_name_or_path} has the vendor's tokenizer, a SentencePiece model. Convert the "
            "checkpoint first: `iquest-plt convert SRC DST`."
        )


class VendorTokenizerConfig(PreTrainedConfig):
    """The key for registering the class. No model uses it."""

    model_type = "iquestcoder-vendor-tokenizer"
