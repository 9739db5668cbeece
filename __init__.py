# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Parallel Loop Transformers for stock Transformers.

Importing this package registers the model type `iquestpltcoder`, so that `AutoModelForCausalLM.from_pretrained(PATH)`
loads a checkpoint without `trust_remote_code`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from .cache_plt import PLTCache, PLTCacheLayer, PLTStaticCacheLayer
from .configuration_plt import IQuestPLTCoderConfig
from .heads_plt import (
    IQuestPLTCoderForQuestionAnswering,
    IQuestPLTCoderForSequenceClassification,
    IQuestPLTCoderForTokenClassification,
)
from .modeling_plt import IQuestPLTCoderForCausalLM, IQuestPLTCoderModel, IQuestPLTCoderPreTrainedModel
from .tokenization.tokenization_plt import IQuestPLTCoderTokenizer
from .tokenization.vendor import IQuestCoderTokenizer, VendorTokenizerConfig


__version__ = "0.1.0"

__all__ = [
    "IQuestPLTCoderConfig",
    "IQuestPLTCoderForCausalLM",
    "IQuestPLTCoderForQuestionAnswering",
    "IQuestPLTCoderForSequenceClassification",
    "IQuestPLTCoderForTokenClassification",
    "IQuestPLTCoderModel",
    "IQuestPLTCoderPreTrainedModel",
    "IQuestPLTCoderTokenizer",
    "PLTCache",
    "PLTCacheLayer",
    "PLTStaticCacheLayer",
]

# exist_ok: a second import in one process (a reload, a test) must not fail.
AutoConfig.register(IQuestPLTCoderConfig.model_type, IQuestPLTCoderConfig, exist_ok=True)
# Makes `save_pretrained` write the model code and `auto_map` next to the weights, so the folder loads as remote code.
IQuestPLTCoderConfig.register_for_auto_class()
for auto_class, model_class in (
    (AutoModel, IQuestPLTCoderModel),
    (AutoModelForCausalLM, IQuestPLTCoderForCausalLM),
    (AutoModelForQuestionAnswering, IQuestPLTCoderForQuestionAnswering),
    (AutoModelForSequenceClassification, IQuestPLTCoderForSequenceClassification),
    (AutoModelForTokenClassification, IQuestPLTCoderForTokenClassification),
):
    auto_class.register(IQuestPLTCoderConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class)
AutoTokenizer.register(IQuestPLTCoderConfig, fast_tokenizer_class=IQuestPLTCoderTokenizer, exist_ok=True)
IQuestPLTCoderTokenizer.register_for_auto_class("AutoTokenizer")
AutoTokenizer.register(VendorTokenizerConfig, fast_tokenizer_class=IQuestCoderTokenizer, exist_ok=True)
