# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Checks the request bodies of OpenAI's API for Transformers' server. Needs only the standard library."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Problem(NamedTuple):
    field: str | None
    message: str


def find_problem(path: str, body: Any) -> Problem | None:
    """Returns the first invalid field of a request, or None. A field that is null counts as missing."""
    if not isinstance(body, dict):
        return Problem(None, "The body must be a JSON object.")
    body = without_nulls(body)
    name, check = REQUIRED[path]
    if name not in body:
        return Problem(name, f"{name} is missing.")
    problem = check(name, body[name])
    if problem is not None:
        return problem
    for name, (is_right, wanted) in FIELDS.items():
        if name in body and not is_right(body[name]):
            return Problem(name, f"{name} must be {wanted}.")
    for name, neutral in IGNORED.items():
        if name in body and name != REQUIRED[path][0] and not any(_is_same(body[name], value) for value in neutral):
            return Problem(
                name, f"{name} is not supported by Transformers' server. Leave it out, or use vLLM's server."
            )
    return None


def _is_same(value: Any, other: Any) -> bool:
    """Compares JSON values. `logprobs=0` asks for log probabilities in `/v1/completions`, so 0 is not false."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def without_nulls(body: dict) -> dict:
    """Returns the body without fields that are null, at the top level and in its messages."""
    found = {name: value for name, value in body.items() if value is not None}
    for name in ("messages", "input"):
        if isinstance(found.get(name), list):
            found[name] = [_without_nulls(item) for item in found[name]]
    return found


def _without_nulls(item: Any) -> Any:
    return {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else item


def _check_prompt(name: str, prompt: Any) -> Problem | None:
    return None if isinstance(prompt, str) and prompt else Problem(name, f"{name} must be a non-empty string.")


def _check_messages(name: str, messages: Any) -> Problem | None:
    if not isinstance(messages, list) or not messages:
        return Problem(name, f"{name} must be a list of at least one message.")
    for index, message in enumerate(messages):
        at = f"{name}[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return Problem(at, f"{at} must be an object with a role.")
        problem = _check_content(f"{at}.content", message.get("content", ""))
        for number, call in enumerate(_list(message.get("tool_calls", []))):
            if problem is None and not _is_call(call):
                field = f"{at}.tool_calls[{number}]"
                problem = Problem(field, f"{field} must have a function with a name and a JSON object of arguments.")
        if problem is not None:
            return problem
    return None


def _check_content(at: str, content: Any) -> Problem | None:
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return Problem(at, f"{at} must be a string or a list of parts.")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "output_text"):
            return Problem(f"{at}[{index}]", f"{at}[{index}] must have the type text. The model reads only text.")
        if not isinstance(part.get("text"), str):
            return Problem(f"{at}[{index}].text", f"{at}[{index}].text must be a string.")
    return None


def _check_input(name: str, given: Any) -> Problem | None:
    """
    Checks the input of `/v1/responses`: a string, parts of one message, or messages and calls. The server checks the
    contents of calls.
    """
    if isinstance(given, str):
        return _check_prompt(name, given)
    if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
        return Problem(name, f"{name} must be a string or a list of at least one object.")
    if "role" not in given[0] and given[0].get("type") in ("text", "input_text", "output_text"):
        return _check_content(name, given)
    for index, item in enumerate(given):
        at, kind = f"{name}[{index}]", item.get("type")
        if "role" in item:
            problem = _check_messages(name, [item])
            if problem is not None:
                return Problem(at, problem.message.replace(f"{name}[0]", at))
        elif kind in CALLS and not all(isinstance(item.get(field), str) for field in CALLS[kind]):
            return Problem(at, f"{at} must have the string fields {', '.join(CALLS[kind])}.")
        elif kind not in ("reasoning", *CALLS):
            return Problem(at, f"{at} must have a role, or the type reasoning, {' or '.join(CALLS)}.")
    return None


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    return isinstance(function.get("arguments"), dict) or _is_json_object(function.get("arguments"))


def _is_json_object(text: Any) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _list(value: Any) -> list:
    """Returns a list unchanged, and any other value in a list, so that it is checked like an entry."""
    return value if isinstance(value, list) else [value]


def _number(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    """Returns a check for finite numbers from `low` to `high`."""
    return lambda value: (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and low <= value <= high
        and abs(value) != math.inf
    )


def _is_count(value: Any) -> bool:
    return _number(1)(value) and value == int(value)


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_stop(value: Any) -> bool:
    return bool(value) and all(isinstance(text, str) and text for text in _list(value))


def _is_bias(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(key.isdecimal() and _number(-100, 100)(bias) for key, bias in value.items())


def _is_tools(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(tool, dict) for tool in value)


CALLS = {"function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id", "output")}
REQUIRED = {
    "/v1/chat/completions": ("messages", _check_messages),
    "/v1/completions": ("prompt", _check_prompt),
    "/v1/responses": ("input", _check_input),
}
_COUNT = (_is_count, "an integer of at least 1")
FIELDS = {
    "model": (lambda value: isinstance(value, str), "a string"),
    "max_tokens": _COUNT,
    "max_completion_tokens": _COUNT,
    "max_output_tokens": _COUNT,
    "temperature": (_number(0, 100), "a number between 0 and 100"),
    "top_p": (_number(0, 1), "a number between 0 and 1"),
    "frequency_penalty": (_number(-0.999, 2), "a number above -1 and at most 2"),  # the server's factor is 1 + this
    "seed": (_is_seed, "an integer of at least 0"),
    "stop": (_is_stop, "a non-empty string or a list of them"),
    "stream": (lambda value: isinstance(value, bool), "true or false"),
    "logit_bias": (_is_bias, "an object that maps token ids to numbers between -100 and 100"),
    "tools": (_is_tools, "a list of objects"),
    "chat_template_kwargs": (lambda value: isinstance(value, dict), "an object"),
    "generation_config": (_is_json_object, "a string that contains a JSON object"),
    "instructions": (lambda value: isinstance(value, str), "a string"),
    "suffix": (lambda value: isinstance(value, str), "a string"),
}
# Fields that the server ignores, with the values for which this is right.
IGNORED: dict[str, list] = {
    "n": [1],
    "best_of": [1],
    "logprobs": [False],
    "top_logprobs": [0],
    "echo": [False],
    "presence_penalty": [0],
    "response_format": [{"type": "text"}],
    "text": [{"format": {"type": "text"}}],
    "tool_choice": ["auto"],
    "functions": [],
    "function_call": [],
    "modalities": [["text"]],
    "audio": [],
    "prediction": [],
    "web_search_options": [],
    "background": [False],
    "include": [[]],
    "max_tool_calls": [],
    "previous_response_id": [],
    "prompt": [],
    "truncation": ["disabled"],
}
