# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What Transformers finds under the name of the vendor's tokenizer class."""

from transformers import PreTrainedConfig, PreTrainedTokenizerFast


class IQuestCoderTokenizer(PreTrainedTokenizerFast):
    """
    Refuses to load. With a class registered for the model type, Transformers no longer asks for the vendor's own code,
    and would make of `tokenizer.model` a tokenizer with other ids, without a word.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Raises ValueError, with the way out."""
        raise ValueError(
            f"{pretrained_model_name_or_path} has the vendor's tokenizer, a SentencePiece model. Convert the "
            "checkpoint first: `iquest-plt convert SRC DST`."
        )


class VendorTokenizerConfig(PreTrainedConfig):
    """The key that the class is registered under. No model has it."""

    model_type = "iquestcoder-vendor-tokenizer"
