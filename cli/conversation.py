# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A chat of several turns on one kept cache."""

import torch
from transformers.generation.streamers import BaseStreamer

from ..cache_plt import PLTCache
from ..conversion.tokenizer import as_list, render
from ..tokenization.tool_calls import parse_response


class Conversation:
    """
    Messages, and the cache of what the model has read of them. A turn feeds only what is new, as long as the template
    repeats what was said word for word; if it does not (it may leave out earlier thoughts), all is read again.

    Args:
        model: an `IQuestPLTCoderForCausalLM`.
        tokenizer: with a chat template.
        system: the system prompt; without one the template has its own.
        num_loops: loops per token.
        options: of `generate()`.
    """

    def __init__(self, model, tokenizer, system: str | None = None, num_loops: int | None = None, **options):
        if tokenizer.chat_template is None:
            raise ValueError("This model has no chat template: use `generate`, or convert it with a chat template.")
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.num_loops = model.config.check_num_loops(num_loops)
        self.messages = [{"role": "system", "content": system}] if system else []
        self._forget()

    def _forget(self) -> None:
        """The cache, not the messages."""
        self.cache: PLTCache | None = None
        self.text, self.ids = "", []

    def set_num_loops(self, num_loops: int) -> None:
        """From the next turn on; that reads everything again, as a cache belongs to one number of loops."""
        self.num_loops = self.model.config.check_num_loops(num_loops)
        self._forget()

    def clear(self, system: str | None = None) -> None:
        """Begins anew, with the system prompt `system`, or the one there was."""
        kept = [message for message in self.messages[:1] if message["role"] == "system"]
        self.messages = [{"role": "system", "content": system}] if system else kept
        self._forget()

    @property
    def cached_tokens(self) -> int:
        return 0 if self.cache is None else self.cache.get_seq_length()

    def ask(self, content: str, streamer: BaseStreamer | None = None) -> dict:
        """The reply to `content` as a message; `streamer` gets its tokens as they come. Both join the messages."""
        messages = [*self.messages, {"role": "user", "content": content}]
        text = render(self.tokenizer, messages, add_generation_prompt=True)
        new = text.removeprefix(self.text)
        # No token reaches over an added one such as <|im_end|>: what comes can be encoded alone.
        if not (self.text and text.startswith(self.text) and new.startswith(tuple(self.tokenizer.get_added_vocab()))):
            self._forget()
        cache = self.cache or PLTCache(self.model.config, self.num_loops)
        ids = self.ids + self.tokenizer.encode(text[len(self.text) :], add_special_tokens=False)
        self._forget()  # until the turn is over: an interrupted one leaves the cache in between
        input_ids = torch.tensor([ids], device=self.model.device)
        output = self.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            past_key_values=cache,
            num_loops=self.num_loops,
            streamer=streamer,
            **self.options,
        )
        # The last token was chosen, not read: the cache ends before it. If it ends the turn, the template writes it.
        reply = output[0, len(ids) :].tolist()
        if reply[-1] in as_list(self.model.generation_config.eos_token_id):
            reply = reply[:-1]
        reply_text = self.tokenizer.decode(reply)
        message = parse_response(reply_text)
        if message.keys() == {"role", "content"}:
            message["content"] = reply_text  # with the whitespace around it, so that the template repeats it
        self.messages = [*messages, message]
        self.cache, self.text, self.ids = cache, text + reply_text, ids + reply
        return message
