# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A chat of several turns that reuses one cache."""

import torch
from transformers.generation.streamers import BaseStreamer

from ..cache_plt import PLTCache
from ..conversion.tokenizer import as_list, render
from ..tokenization.tool_calls import parse_response
from .length import bounded, note_if_cut


class Conversation:
    """
    The messages of a chat, with the cache of the tokens already processed.

    A turn feeds the model only the new tokens if the template repeats the earlier turns word for word. If it does not
    (some templates drop earlier thoughts), the whole chat is processed again.

    Args:
        model: an `IQuestPLTCoderForCausalLM`.
        tokenizer: must have a chat template.
        system: system prompt; None for the template's default.
        num_loops: loops per token.
        options: arguments of `generate()`.
    """

    def __init__(self, model, tokenizer, system: str | None = None, num_loops: int | None = None, **options):
        if tokenizer.chat_template is None:
            raise ValueError("This model has no chat template. Use `generate`, or convert it with a chat template.")
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.num_loops = model.config.check_num_loops(num_loops)
        self.messages = [{"role": "system", "content": system}] if system else []
        self._forget()

    def _forget(self) -> None:
        """Drops the cache and keeps the messages."""
        self.cache: PLTCache | None = None
        self.text, self.ids = "", []

    def set_num_loops(self, num_loops: int) -> None:
        """Takes effect in the next turn, which processes the whole chat again: a cache fits one number of loops."""
        self.num_loops = self.model.config.check_num_loops(num_loops)
        self._forget()

    def clear(self, system: str | None = None) -> None:
        """Starts over with the system prompt `system`, or with the current one."""
        kept = [message for message in self.messages[:1] if message["role"] == "system"]
        self.messages = [{"role": "system", "content": system}] if system else kept
        self._forget()

    @property
    def cached_tokens(self) -> int:
        return 0 if self.cache is None else self.cache.get_seq_length()

    def ask(self, content: str, streamer: BaseStreamer | None = None) -> dict:
        """
        Returns the reply to `content` as a message and records both; `streamer` receives the tokens as they come.
        Raises ValueError, and records nothing, if the chat has become too long for the model.
        """
        messages = [*self.messages, {"role": "user", "content": content}]
        text = render(self.tokenizer, messages, add_generation_prompt=True)
        new = text.removeprefix(self.text)
        # No token spans an added token such as <|im_end|>, so the text from there on can be encoded separately.
        if not (self.text and text.startswith(self.text) and new.startswith(tuple(self.tokenizer.get_added_vocab()))):
            self._forget()
        cache = self.cache or PLTCache(self.model.config, self.num_loops)
        ids = self.ids + self.tokenizer.encode(text[len(self.text) :], add_special_tokens=False)
        options = bounded(self.model, len(ids), self.options, "Shorten the message, or start over with /clear.")
        self._forget()  # until the turn is complete: an interrupted one leaves a partly filled cache
        input_ids = torch.tensor([ids], device=self.model.device)
        output = self.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            past_key_values=cache,
            num_loops=self.num_loops,
            streamer=streamer,
            tokenizer=self.tokenizer,
            **options,
        )
        note_if_cut(self.model, output[0])
        # The cache does not hold the last token yet. If it is an end token, the template adds it in the next turn.
        reply = output[0, len(ids) :].tolist()
        if reply[-1] in as_list(self.model.generation_config.eos_token_id):
            reply = reply[:-1]
        reply_text = self.tokenizer.decode(reply)
        message = parse_response(reply_text)
        if message.keys() == {"role", "content"}:
            message["content"] = reply_text  # unstripped, so that the template repeats it exactly
        self.messages = [*messages, message]
        self.cache, self.text, self.ids = cache, text + reply_text, ids + reply
        return message
