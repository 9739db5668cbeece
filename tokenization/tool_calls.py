# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Parses the model's replies into reasoning, text and tool calls, whole or while they arrive.

A reply is an optional `<think>…</think>`, then text and any number of tool calls in any order. Each call has the form

    <tool_call>
    {"name": "read_file", "arguments": {"path": "a.py"}}
    </tool_call>

Everything else stays in `content` as text, including tags: JSON that does not parse, an object that is not a call, a
tag in the middle of a sentence, a `</think>` without a `<think>`. So no reply raises an error and no words are lost.
Only whitespace around the parts and the end-of-turn tokens at the very end are dropped. A tag in a JSON string belongs
to the string. A last call without a closing tag counts if its JSON is complete.

Parsing takes time proportional to the length of the reply, whatever its contents and pieces.

This module needs only the standard library.
"""

import json
import re
from typing import Any


ASSISTANT_START = "<|im_start|>assistant\n"
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"

# Whitespace before a tag, matched only from its first character. Otherwise a search would take quadratic time.
_SPACES = r"(?:(?<!\s)\s+)?"
# The same grammar for Transformers' own `tokenizer.parse_response`, stored in tokenizer_config.json. It gives the same
# message for a well-formed reply, but omits an empty `content`. It is less tolerant: it raises ValueError for a call
# with invalid JSON, ends a call at the first closing tag, even in a JSON string, and accepts any JSON as a call.
RESPONSE_TEMPLATE = {
    "version": 1,
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT_START,
    "fields": {
        "reasoning_content": {"open_pattern": r"\A\s*<think>", "close": END_THINK, "content": "text"},
        "tool_calls": {
            "open_pattern": rf"{_SPACES}<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {
            "close_pattern": rf"{_SPACES}(?:<\|im_end\|>|<\|endoftext\|>)\s*",
            "repeats": True,
            "join": "\n",
            "content": "text",
        },
    },
}

_JSON_SPACE = re.compile(rb"[ \t\r\n]*+")
_OBJECT_START = re.compile(rb"<tool_call>[ \t\r\n]*\{")
# What JSON contains outside its strings. A stray letter or backslash shows at once that the text is not a call.
_BETWEEN_STRINGS = re.compile(rb"[ \t\r\n{}\[\]:,+\-.0-9Etruefalsn]*+")
_WITHIN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


def parse_response(text: str, prefix: str = "") -> dict[str, Any]:
    """Returns the assistant's message in a generated `text`, in the format of chat templates.

    The message always has `role` and `content` (a string, possibly empty). If present, it also has `reasoning_content`
    (a string) and `tool_calls`, a list of `{"type": "function", "function": {"name": …, "arguments": …}}`. Arguments
    are an object. OpenAI's API needs its `json.dumps`, and an `id` made by the server.

    `prefix` is the prompt. Its part after the last `<|im_start|>assistant` belongs to the reply: a think block that the
    template opened, or the beginning of a continued message.
    """
    stream = ToolCallStream(prefix)
    stream.feed(text)
    stream.finish()
    return stream.message


class ToolCallStream:
    """Parses a reply while it arrives, in pieces of any size.

    `feed(text)` and `finish()` return deltas, each a dict with one item: `reasoning_content` or `content` with the next
    piece of text, or `tool_calls` with a list of one complete call that also has an `index`. Their concatenation is
    `message`. After `finish()` it equals the result of `parse_response` for the whole text. The part of the message
    written by the prompt is in `message`, but not in the deltas.
    """

    # Texts are kept in pieces and joined on demand. Undecided text is kept as bytes, which can grow at the end and
    # shrink at the start without copying the rest.

    def __init__(self, prefix: str = ""):
        self._texts: dict[str, list[str]] = {"content": []}
        self._calls: list[dict[str, Any]] = []
        self._read = self._read_start  # the state: reads from `_rest`, and returns whether it made progress
        self._end: list[str] = []  # whitespace and end tokens, dropped if nothing follows
        self._cut = ""  # may become another end token
        self._rest = bytearray()  # not yet decided
        self._space = ""  # whitespace, dropped unless more of the same part follows
        self._part_is_empty = True
        self._position, self._in_string = 0, False  # inside the JSON of a call
        self._is_finished = False
        self._deltas: list[dict[str, Any]] = []
        _, start, opened = prefix.rpartition(ASSISTANT_START)
        self.feed(opened if start else "")

    @property
    def message(self) -> dict[str, Any]:
        """The message so far."""
        message = {"role": "assistant", **{field: "".join(pieces) for field, pieces in self._texts.items()}}
        return message | ({"tool_calls": list(self._calls)} if self._calls else {})

    def feed(self, text: str) -> list[dict[str, Any]]:
        """Takes the next piece of the reply. Raises ValueError after `finish()`."""
        if self._is_finished:
            raise ValueError("The reply is finished. Create a new ToolCallStream for the next one.")
        text = self._cut + text
        cut = len(text) - max(_overlap(text, token) for token in END_TOKENS)
        end = _start_of_end(text[:cut])
        before = ""
        if end > 0:
            before, self._end = "".join(self._end) + text[:end], []
        self._end.append(text[end:cut])
        self._cut = text[cut:]
        return self._advance(before)

    def finish(self) -> list[dict[str, Any]]:
        """Ends the reply and returns the last deltas. Further calls have no effect."""
        text = "".join(self._end) + self._cut if self._cut else ""  # an incomplete token is text
        self._end, self._cut, self._is_finished = [], "", True
        return self._advance(text)

    def _advance(self, text: str) -> list[dict[str, Any]]:
        self._rest += _bytes(text)
        while self._read():
            pass
        deltas, self._deltas = self._deltas, []
        return [
            {field: value if field == "tool_calls" else "".join(value) for field, value in delta.items()}
            for delta in deltas
        ]

    # -- states ------------------------------------------------------------------------------------------------------

    def _read_start(self) -> bool:
        self._rest = _bytes(_text(self._rest).lstrip())
        if self._rest.startswith(_bytes(THINK)):
            del self._rest[: len(THINK)]
            self._read = self._read_reasoning
            return True
        if _bytes(THINK).startswith(self._rest) and not self._is_finished:
            return False
        self._read = self._read_text
        return True

    def _read_reasoning(self) -> bool:
        found = self._say_until(END_THINK, "reasoning_content")
        if found:
            del self._rest[: len(END_THINK)]
            self._read = self._read_text
            self._space, self._part_is_empty = "", True
        return found

    def _read_text(self) -> bool:
        found = self._say_until(CALL, "content")
        if found:
            self._position, self._in_string, self._read = len(CALL), False, self._read_call
        return found

    def _read_call(self) -> bool:
        """At `<tool_call>`: reads the call, or the tag as text."""
        end = self._end_of_json()
        if end is None and not self._is_finished:
            return False
        if end is None:  # the closing tag is missing or cut off
            end = len(self._rest) - _overlap(self._rest, END_CALL)
        call = _parse_call(_text(self._rest[len(CALL) : end]))
        self._read = self._read_text
        if call is None:
            del self._rest[: len(CALL)]
            self._say(CALL, "content")
            return True
        del self._rest[: end + len(END_CALL)]
        self._space, self._part_is_empty = "", True
        self._deltas.append({"tool_calls": [{"index": len(self._calls), **call}]})
        self._calls.append(call)
        return True

    def _end_of_json(self) -> int | None:
        """Returns the position of `</tool_call>`, or the start if the text cannot be JSON, or None if not yet known."""
        rest, begin = self._rest, len(CALL)
        if self._position == begin:
            start = _OBJECT_START.match(rest)
            if start is None:
                return begin if _JSON_SPACE.match(rest, begin).end() < len(rest) else None  # type: ignore[union-attr]
            self._position = start.end()
        while True:
            part = _WITHIN_STRING if self._in_string else _BETWEEN_STRINGS
            self._position = part.match(rest, self._position).end()  # type: ignore[union-attr]
            ahead = rest[self._position : self._position + len(END_CALL)]
            if ahead.startswith(b'"'):
                self._in_string = not self._in_string
                self._position += 1
            elif self._in_string or not ahead:  # the string continues, or its last character is a backslash
                return None
            elif ahead == _bytes(END_CALL):
                return self._position
            else:
                return None if _bytes(END_CALL).startswith(ahead) else begin

    # -- text --------------------------------------------------------------------------------------------------------

    def _say_until(self, tag: str, field: str) -> bool:
        """Emits the text before `tag`, and returns whether the tag has arrived."""
        found = self._rest.find(_bytes(tag))
        end = found
        if found < 0:
            end = len(self._rest) - (0 if self._is_finished else _overlap(self._rest, tag))
        self._say(_text(self._rest[:end]), field)
        del self._rest[:end]
        return found >= 0

    def _say(self, text: str, field: str) -> None:
        """Emits `text` without the whitespace around its part. Parts are separated by a newline."""
        text = self._space + text
        if self._part_is_empty:
            text = text.lstrip()
        words = text.rstrip()
        self._space = text[len(words) :]
        if not words:
            return
        said = self._texts.setdefault(field, [])
        if self._part_is_empty and said:
            words = "\n" + words
        self._part_is_empty = False
        said.append(words)
        if self._deltas and field in self._deltas[-1]:
            self._deltas[-1][field].append(words)
        else:
            self._deltas.append({field: [words]})


def _parse_call(text: str) -> dict[str, Any] | None:
    """Parses the JSON of a call. Returns None if it is not an object with a name and, optionally, arguments."""
    try:
        function = json.loads(text, strict=False)  # models write plain newlines into strings
        # Values that cannot be written again, such as infinities and halves of surrogate pairs, stay text.
        json.dumps(function, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    if "arguments" not in function and len(function) > 1:  # such as "parameters", which is not the trained format
        return None
    function.setdefault("arguments", {})
    return {"type": "function", "function": function} if isinstance(function["arguments"], dict) else None


def _bytes(text: str) -> bytearray:
    return bytearray(text, "utf-8", "surrogatepass")


def _text(part: bytearray) -> str:
    return part.decode("utf-8", "surrogatepass")


def _overlap(text: str | bytearray, tag: str) -> int:
    """Returns how many characters at the end of `text` may be the beginning of `tag`, which is ASCII."""
    tag = tag if isinstance(text, str) else _bytes(tag)  # type: ignore[assignment]
    return next((size for size in range(len(tag) - 1, 0, -1) if text.endswith(tag[:size])), 0)  # type: ignore[arg-type]


def _start_of_end(text: str) -> int:
    """Returns the start of the whitespace and end tokens at the end of `text`."""
    end = len(text)
    while end > 0:
        size = next((len(token) for token in END_TOKENS if text.endswith(token, 0, end)), text[end - 1].isspace())
        if not size:
            break
        end -= size
    return end
