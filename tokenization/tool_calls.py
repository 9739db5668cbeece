# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Reads what the model wrote: reasoning, text and tool calls, from a whole reply or while it arrives.

A reply is an optional `<think>…</think>`, then text and any number of tool calls in any order, each of them

    <tool_call>
    {"name": "read_file", "arguments": {"path": "a.py"}}
    </tool_call>

What is not exactly that is text and stays in `content`, tags included: JSON that does not parse, an object that is no
call, a tag in the middle of a sentence, a `</think>` that nothing opened. So no reply raises and no words are lost:
only whitespace around the parts is dropped, and the end-of-turn tokens at the very end. A tag within a JSON string
belongs to the string. A last call whose closing tag is missing counts if its JSON is complete.

Reading takes time proportional to the length of the reply, however it is cut and whatever it holds.

This module needs the standard library only.
"""

import json
import re
from typing import Any


ASSISTANT_START = "<|im_start|>assistant\n"
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"

# Whitespace before a tag, looked for from its first character only: else a search through it takes quadratic time.
_SPACES = r"(?:(?<!\s)\s+)?"
# The same grammar for Transformers' own `tokenizer.parse_response`, to be stored in tokenizer_config.json. It gives the
# same message for a well-formed reply, without `content` where that is empty. Else it is less patient: it raises
# ValueError for a call whose JSON does not parse, a call ends at the first closing tag, also within a JSON string, and
# any JSON is a call.
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
# What JSON has outside of its strings; a stray letter or backslash shows at once that a call is none.
_BETWEEN_STRINGS = re.compile(rb"[ \t\r\n{}\[\]:,+\-.0-9Etruefalsn]*+")
_WITHIN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


def parse_response(text: str, prefix: str = "") -> dict[str, Any]:
    """The assistant's message in a generated `text`, as chat templates take it.

    Always has `role` and `content` (text, may be empty), and where there are any `reasoning_content` (text) and
    `tool_calls`, a list of `{"type": "function", "function": {"name": …, "arguments": …}}`. Arguments are an object;
    OpenAI's API wants `json.dumps` of it, and an `id` of the server's making.

    `prefix` is the prompt, of which the part after the last `<|im_start|>assistant` belongs to the reply: a think block
    that the template opened, or the beginning of a continued message.
    """
    stream = ToolCallStream(prefix)
    stream.feed(text)
    stream.finish()
    return stream.message


class ToolCallStream:
    """The same while the text arrives, in pieces of any size.

    `feed(text)` and `finish()` return deltas, each a dict of one item: `reasoning_content` or `content` with the next
    piece of text, or `tool_calls` with a list of one whole call, which has an `index` besides. Their concatenation is
    `message`, which after `finish()` is what `parse_response` returns for the whole text. What the prompt wrote of the
    message is in `message`, but not in the deltas.
    """

    # Texts are kept in pieces and joined when asked for; what is not decided is bytes, which can be added to at the end
    # and taken from at the beginning without a copy of the rest.

    def __init__(self, prefix: str = ""):
        self._texts: dict[str, list[str]] = {"content": []}
        self._calls: list[dict[str, Any]] = []
        self._read = self._read_start  # the state: reads from `_rest`, and says whether it got any further
        self._end: list[str] = []  # whitespace and end tokens, dropped if nothing follows
        self._cut = ""  # what may become one more end token
        self._rest = bytearray()  # not yet decided
        self._space = ""  # whitespace that is dropped if nothing of the same part follows
        self._part_is_empty = True
        self._position, self._in_string = 0, False  # within the JSON of a call
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
            raise ValueError("The reply is finished: make a new ToolCallStream for the next one.")
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
        """Says that nothing follows. May be called again, with no effect."""
        text = "".join(self._end) + self._cut if self._cut else ""  # a token that is not whole is text
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
        """At `<tool_call>`: the call, or the tag as text."""
        end = self._end_of_json()
        if end is None and not self._is_finished:
            return False
        if end is None:  # the closing tag is missing, or cut off
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
        """Where `</tool_call>` stands; where the text began if it cannot be JSON; None if neither is known yet."""
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
            elif self._in_string or not ahead:  # the string goes on, or its last character is a backslash
                return None
            elif ahead == _bytes(END_CALL):
                return self._position
            else:
                return None if _bytes(END_CALL).startswith(ahead) else begin

    # -- text --------------------------------------------------------------------------------------------------------

    def _say_until(self, tag: str, field: str) -> bool:
        """Passes on the text before `tag`, and says whether the tag has come."""
        found = self._rest.find(_bytes(tag))
        end = found
        if found < 0:
            end = len(self._rest) - (0 if self._is_finished else _overlap(self._rest, tag))
        self._say(_text(self._rest[:end]), field)
        del self._rest[:end]
        return found >= 0

    def _say(self, text: str, field: str) -> None:
        """Passes on `text` without the whitespace around the part it belongs to; parts are separated by a newline."""
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
    """The call that is the JSON `text`, or None if it is no object with a name and, if any, an object of arguments."""
    try:
        function = json.loads(text, strict=False)  # models write plain newlines into strings
        # What cannot be written again is left as it is: infinities, halves of surrogate pairs.
        json.dumps(function, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    if "arguments" not in function and len(function) > 1:  # such as "parameters": no call that was taught
        return None
    function.setdefault("arguments", {})
    return {"type": "function", "function": function} if isinstance(function["arguments"], dict) else None


def _bytes(text: str) -> bytearray:
    return bytearray(text, "utf-8", "surrogatepass")


def _text(part: bytearray) -> str:
    return part.decode("utf-8", "surrogatepass")


def _overlap(text: str | bytearray, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`, which is ASCII."""
    tag = tag if isinstance(text, str) else _bytes(tag)  # type: ignore[assignment]
    return next((size for size in range(len(tag) - 1, 0, -1) if text.endswith(tag[:size])), 0)  # type: ignore[arg-type]


def _start_of_end(text: str) -> int:
    """Where the whitespace and the end tokens begin that run to the end of `text`."""
    end = len(text)
    while end > 0:
        size = next((len(token) for token in END_TOKENS if text.endswith(token, 0, end)), text[end - 1].isspace())
        if not size:
            break
        end -= size
    return end
