# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Reply parsers for vLLM's OpenAI server, based on `tokenization/tool_calls.py`: `--reasoning-parser loopcoder
--tool-call-parser loopcoder --enable-auto-tool-choice`.

vLLM passes a reply to the reasoning parser, and everything after the thoughts to the tool parser. Both read it as a
stream. They hold back text that could still become a tag. If it does not, `finish_streaming` returns it.
"""

import bisect
import json
from collections.abc import Sequence

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.reasoning import ReasoningParser
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers import ToolParser

from ...tokenization.tool_calls import ASSISTANT_START, END_THINK, THINK, ToolCallStream


def _message(deltas: list[dict]) -> DeltaMessage | None:
    """Converts deltas to vLLM's message, with complete calls."""
    message = DeltaMessage()
    message.reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas) or None
    message.content = "".join(delta.get("content", "") for delta in deltas) or None
    for delta in deltas:
        message.tool_calls += [
            DeltaToolCall(
                index=call["index"],
                id=make_tool_call_id(),
                type="function",
                function=DeltaFunctionCall(name=call["function"]["name"], arguments=_arguments(call)),
            )
            for call in delta.get("tool_calls", [])
        ]
    return message if deltas else None


def _arguments(call: dict) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


class LoopCoderToolParser(ToolParser):
    engine_based_streaming = True  # tells vLLM that the parser has `finish_streaming`
    structural_tag_model = "hermes"  # the same call format, for `tool_choice="required"`

    def __init__(self, tokenizer, tools=None):
        super().__init__(tokenizer, tools)
        self._stream = ToolCallStream()

    def extract_tool_calls(self, model_output: str, request) -> ExtractedToolCallInformation:
        stream = ToolCallStream()
        stream.feed(model_output)
        stream.finish()
        calls = [
            ToolCall(function=FunctionCall(name=call["function"]["name"], arguments=_arguments(call)))
            for call in stream.message.get("tool_calls", [])
        ]
        content = stream.message["content"] or None
        return ExtractedToolCallInformation(tools_called=bool(calls), tool_calls=calls, content=content)

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request,
    ) -> DeltaMessage | None:
        return _message(self._stream.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        return _message(self._stream.finish())


class _Thoughts(ToolCallStream):
    """Reads the thoughts at the start of a reply, and leaves the rest unparsed."""

    is_over = False  # the thoughts are closed, or there are none

    def _read_text(self) -> bool:
        self.is_over = True
        return False

    @property
    def rest(self) -> str:
        """The text received so far after the thoughts."""
        return "".join([self._rest.decode(), *self._end, self._cut]).lstrip() if self.is_over else ""


class LoopCoderReasoningParser(ReasoningParser):
    engine_based_streaming = True
    reasoning_start_str = THINK
    reasoning_end_str = END_THINK

    def __init__(self, tokenizer, *args, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        self._stream = _Thoughts()

    def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        self._stream = _Thoughts(self.model_tokenizer.decode(prompt_token_ids))

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Returns whether the thoughts have ended in a reply, or in a prompt with the beginning of its reply."""
        text = self.model_tokenizer.decode(input_ids)
        stream = _Thoughts(text)
        if ASSISTANT_START not in text:
            stream.feed(text)
        return stream.is_over

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        counts = range(len(input_ids) + 1)
        return input_ids[bisect.bisect_left(counts, True, key=lambda n: self.is_reasoning_end(input_ids[:n])) :]

    def extract_reasoning(self, model_output: str, request) -> tuple[str | None, str | None]:
        stream = _Thoughts()
        stream.feed(model_output)
        rest = stream.rest
        stream.finish()
        return stream.message.get("reasoning_content"), rest or stream.rest or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        return _message(self._stream.feed(delta_text))

    def has_engine_confirmed_reasoning_end(self) -> bool:
        return bool(self._stream.rest)

    def finish_streaming(self) -> DeltaMessage | None:
        """Returns the text after the thoughts for the tool parser, or the end of a reply without such text."""
        if self._stream.rest:
            return DeltaMessage(content=self._stream.rest)
        message = _message(self._stream.finish())
        return message or (DeltaMessage(content=self._stream.rest) if self._stream.rest else None)
