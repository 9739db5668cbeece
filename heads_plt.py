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
"""
Classifiers on a Parallel Loop Transformer: of texts (reward models among them), of tokens, and of answers in a text.

Their heads are the library's own, on the last loop's states. `num_loops=` and the other arguments of
[`IQuestPLTCoderModel.forward`] go through.
"""

from transformers import AutoModel
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


class IQuestPLTCoderForTokenClassification(GenericForTokenClassification, IQuestPLTCoderPreTrainedModel):
    """Logits (batch, time, num_labels): what `AutoModelForTokenClassification` loads."""


class IQuestPLTCoderForQuestionAnswering(GenericForQuestionAnswering, IQuestPLTCoderPreTrainedModel):
    """Logits (batch, time) of where an answer starts and ends: what `AutoModelForQuestionAnswering` loads."""


# The library's heads ask AutoModel for the decoder, also where these files are remote code.
AutoModel.register(IQuestPLTCoderConfig, IQuestPLTCoderModel, exist_ok=True)

__all__ = [
    "IQuestPLTCoderForQuestionAnswering",
    "IQuestPLTCoderForSequenceClassification",
    "IQuestPLTCoderForTokenClassification",
]
