# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Classifiers on a Parallel Loop Transformer: of texts (reward models among them), of tokens, and of answers in a text.

Their heads are the library's own, on the last loop's states. `num_loops=` and the other arguments of
[`IQuestPLTCoderModel.forward`] go through.

The constructors are written out, since the library's ask `AutoModel` for the decoder, which does not know remote code.
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
    Logits (batch, num_labels) of a row's last token that is not `config.pad_token_id`, wherever the padding stands:
    what `AutoModelForSequenceClassification` loads.
    """

    def __init__(self, config: IQuestPLTCoderConfig):
        IQuestPLTCoderPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.model = IQuestPLTCoderModel(config)
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class IQuestPLTCoderForTokenClassification(GenericForTokenClassification, IQuestPLTCoderPreTrainedModel):
    """Logits (batch, time, num_labels): what `AutoModelForTokenClassification` loads."""

    def __init__(self, config: IQuestPLTCoderConfig):
        IQuestPLTCoderPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.model = IQuestPLTCoderModel(config)
        self.num_labels = config.num_labels
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class IQuestPLTCoderForQuestionAnswering(GenericForQuestionAnswering, IQuestPLTCoderPreTrainedModel):
    """Logits (batch, time) of where an answer starts and ends: what `AutoModelForQuestionAnswering` loads."""

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
