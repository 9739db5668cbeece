# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Classifiers on a Parallel Loop Transformer: for texts (including reward models), tokens, and answer spans.

They use the library's heads on the last loop's states, and accept `num_loops=` and the other arguments of
[`IQuestPLTCoderModel.forward`].

They do not call the library's constructors, which get the decoder from `AutoModel`: it does not know remote code.
"""

from torch import nn
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from .configuration_plt import IQuestPLTCoderConfig
from .modeling_plt import IQuestPLTCoderModel, IQuestPLTCoderPreTrainedModel


class IQuestPLTCoderForSequenceClassification(GenericForSequenceClassification, IQuestPLTCoderPreTrainedModel):
    """
    The model that `AutoModelForSequenceClassification` loads. Its logits (batch, num_labels) are those of each row's
    last token that is not `config.pad_token_id`, wherever the padding is.
    """

    def __init__(self, config: IQuestPLTCoderConfig):
        IQuestPLTCoderPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.model = IQuestPLTCoderModel(config)
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class IQuestPLTCoderForTokenClassification(GenericForTokenClassification, IQuestPLTCoderPreTrainedModel):
    """The model that `AutoModelForTokenClassification` loads. Its logits are (batch, time, num_labels)."""

    def __init__(self, config: IQuestPLTCoderConfig):
        IQuestPLTCoderPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.model = IQuestPLTCoderModel(config)
        self.num_labels = config.num_labels
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class IQuestPLTCoderForQuestionAnswering(GenericForQuestionAnswering, IQuestPLTCoderPreTrainedModel):
    """The model that `AutoModelForQuestionAnswering` loads. It has start and end logits of an answer, (batch, time)."""

    def __init__(self, config: IQuestPLTCoderConfig):
        IQuestPLTCoderPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.model = IQuestPLTCoderModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


__all__ = [
    "IQuestPLTCoderForQuestionAnswering",
    "IQuestPLTCoderForSequenceClassification",
    "IQuestPLTCoderForTokenClassification",
]
