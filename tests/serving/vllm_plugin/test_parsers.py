# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The reply parsers as vLLM's server uses them: whole, and in pieces of any size."""

import json
import random

import pytest
from paths import ROOT, SMALL
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.parser_manager import ParserManager
from vllm.plugins import load_general_plugins

from iquest_plt.serving.vllm import PARSER
from iquest_plt.tokenization.tool_calls import parse_response


MESSAGES = [{"role": "user", "content": "x"}]
CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "a.py", "end": "</tool_call>"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "list", "arguments": {}}\n</tool_call>'
REPLIES = {
    "text": "Hello,\nworld.",
    "empty": "",
    "thoughts and text": "<think>\nWhat is it?\n</think>\n\nIt is this.",
    "thoughts without end": "<think>\nWhat is it",
    "call": CALL,
    "text and calls": f"I look.\n{CALL}\n{OTHER}\nAnd then",
    "thoughts and calls": f"<think>\nLook at </tool_call> first.\n</think>\n\n{CALL}\n{OTHER}",
    "call without end": CALL.removesuffix("</tool_call>"),
    "no call": '<tool_call>\n{"name": 1}\n</tool_call> nor <tool_call> this',
    "beginning of a tag": "a <tool_ca",
    "beginning of thoughts": "<thi",
}


@pytest.fixture(scope="module")
def tokenizer():
    load_general_plugins()
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    tokenizer.chat_template = (ROOT / "chat_template.jinja").read_text()
    return tokenizer


@pytest.fixture
def parser(tokenizer):
    names = {"tool_parser_name": PARSER, "reasoning_parser_name": PARSER, "enable_auto_tools": True}
    return lambda: ParserManager.get_parser(**names, tokenizer=tokenizer)(tokenizer)


@pytest.fixture
def request_with_tools():
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("read", "list")
    ]
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": "x"}], model="m", tools=tools, tool_choice="auto"
    )


def expected(text, prefix=""):
    message = parse_response(text, prefix)
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    return message.get("reasoning_content"), message["content"] or None, calls


@pytest.mark.parametrize("text", REPLIES.values(), ids=REPLIES)
def test_whole_replies(parser, request_with_tools, text):
    reasoning, content, calls = parser().parse(text, request_with_tools, enable_auto_tools=True)
    assert (
        reasoning,
        content and content.strip(),
        [(c.name, json.loads(c.arguments)) for c in calls or []],
    ) == expected(text)


@pytest.mark.parametrize("thinking", [None, False])
@pytest.mark.parametrize("text", REPLIES.values(), ids=REPLIES)
def test_replies_in_pieces(parser, tokenizer, request_with_tools, text, thinking):
    options = {} if thinking is None else {"enable_thinking": thinking}
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, tokenize=False, **options
    )
    if thinking is False and text.startswith("<think>"):
        pytest.skip("the prompt already closes the thoughts")
    prompt_ids = tokenizer(prompt)["input_ids"]
    for size in (1, 3, 10, 1000):
        stream = parser()
        draw, left, pieces = random.Random(size), text, []
        while left or not pieces:
            cut = draw.randint(1, size)
            pieces.append(left[:cut])
            left = left[cut:]
        reasoning, content, calls = "", "", []
        for index, piece in enumerate(pieces):
            delta = stream.parse_delta(
                piece,
                tokenizer(piece)["input_ids"],
                request_with_tools,
                prompt_token_ids=prompt_ids,
                finished=index == len(pieces) - 1,
            )
            if delta is not None:
                reasoning += delta.reasoning or ""
                content += delta.content or ""
                calls += [(c.index, c.id, c.function.name, json.loads(c.function.arguments)) for c in delta.tool_calls]
        assert [call[0] for call in calls] == list(range(len(calls)))
        assert len({call[1] for call in calls}) == len(calls)
        assert (reasoning or None, content or None, [call[2:] for call in calls]) == expected(text), pieces


def test_where_thoughts_end(parser, tokenizer):
    reasoning = parser().reasoning_parser
    ids = tokenizer("<think>\nHm.\n</think>\n\nYes, that.")["input_ids"]
    assert tokenizer.decode(reasoning.extract_content_ids(ids)).strip() == "Yes, that."
    assert not reasoning.is_reasoning_end(tokenizer("<|im_start|>assistant\n<think>\nHm")["input_ids"])
    assert reasoning.is_reasoning_end(tokenizer("<|im_start|>assistant\n<think>\n\n</think>\n\n")["input_ids"])
