# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The chat template renders the same text everywhere, and the model's replies are parsed without loss."""

import json
import random
import re
import shutil

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT, SMALL
from transformers import PreTrainedTokenizerFast

from iquest_plt.tokenization.chat import tokenizer_config_fields, training_chat_template
from iquest_plt.tokenization.tool_calls import RESPONSE_TEMPLATE, ToolCallStream, parse_response


TEMPLATE = (ROOT / "chat_template.jinja").read_text()
SYSTEM = "<|im_start|>system\nYou are LoopCoder, a helpful assistant developed by IQuest.<|im_end|>\n"
TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": 'Reads <a file> & isn\'t "slow":\n\tcafé 🙂 \\n \x01\u2028',
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}
TOOLS_TEXT = f"""<|im_start|>system
Be brief.

# Tools

You can call functions to help with the user's request. One JSON signature per line:
<tools>
{json.dumps(TOOL, ensure_ascii=False)}
</tools>

To call a function, write a JSON object with its name and arguments in its own pair of tags:
<tool_call>
{{"name": <name of the function>, "arguments": <object of arguments>}}
</tool_call><|im_end|>
"""
CALL = {"type": "function", "id": "call_1", "function": {"name": "read_file", "arguments": {"path": "a.py"}}}
CALL_TEXT = '<tool_call>\n{"name": "read_file", "arguments": {"path": "a.py"}}\n</tool_call>'


def user(content="Hi"):
    return {"role": "user", "content": content}


def assistant(content="", **fields):
    return {"role": "assistant", "content": content, **fields}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The small checkpoint's tokenizer, as the library's class, with chat template and response template."""
    if not (SMALL / "tokenizer.json").exists():
        pytest.skip("no shipped checkpoint")
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(SMALL / "tokenizer.json", folder)
    shutil.copy(ROOT / "chat_template.jinja", folder)
    config = json.loads((SMALL / "tokenizer_config.json").read_text()) | tokenizer_config_fields()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def raise_exception(message):
    raise jinja2.TemplateError(message)


def compile_plain(**names):
    """Compiles the template with plain Jinja2. Pass `raise_exception` for readable errors on bad conversations."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(names)
    return environment.from_string(TEMPLATE)


PLAIN = compile_plain(raise_exception=raise_exception)


def render(tokenizer, messages, **kwargs):
    text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    assert PLAIN.render(messages=messages, **kwargs) == text
    return text


# -- rendering -------------------------------------------------------------------------------------------------------


CONVERSATIONS = {
    "default system": ([user()], {}, SYSTEM + "<|im_start|>user\nHi<|im_end|>\n"),
    "generation": (
        [user()],
        {"add_generation_prompt": True},
        SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "no thinking": (
        [user()],
        {"add_generation_prompt": True, "enable_thinking": False},
        SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "thinking": (
        [user()],
        {"add_generation_prompt": True, "enable_thinking": True},
        SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "system in front and later": (
        [{"role": "system", "content": ""}, user(" Hi\n"), {"role": "system", "content": "Rhyme."}],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>system\nRhyme.<|im_end|>\n",
    ),
    "text parts": (
        [user([{"type": "text", "text": "One, "}, {"type": "text", "text": "two."}]), assistant([])],
        {},
        SYSTEM + "<|im_start|>user\nOne, two.<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n",
    ),
    "tools": (
        [{"role": "system", "content": "Be brief."}, user()],
        {"tools": [TOOL]},
        TOOLS_TEXT + "<|im_start|>user\nHi<|im_end|>\n",
    ),
    "calls and responses": (
        [
            user(),
            assistant("I look.", tool_calls=[CALL, CALL]),
            {"role": "tool", "content": "1", "tool_call_id": "call_1"},
            {"role": "tool", "content": [{"type": "text", "text": "2"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": '{"utc":  true}'}}]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "now"}}]},
        ],
        {},
        SYSTEM
        + "<|im_start|>user\nHi<|im_end|>\n"
        + f"<|im_start|>assistant\nI look.\n{CALL_TEXT}\n{CALL_TEXT}<|im_end|>\n"
        + "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        + '<|im_start|>assistant\n<tool_call>\n{"name": "now", "arguments": {"utc":  true}}\n</tool_call><|im_end|>\n'
        + "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        + '<|im_start|>assistant\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n',
    ),
    "reasoning since the last question": (
        [
            user("a"),
            assistant("b", reasoning_content="old"),
            user("c"),
            assistant(reasoning_content="I must\nlook.", tool_calls=[CALL]),
            {"role": "tool", "content": "1"},
            assistant("d", reasoning_content="Done."),
        ],
        {},
        SYSTEM
        + "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        + f"<|im_start|>assistant\n<think>\nI must\nlook.\n</think>\n\n{CALL_TEXT}<|im_end|>\n"
        + "<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>\n"
        + "<|im_start|>assistant\n<think>\nDone.\n</think>\n\nd<|im_end|>\n",
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_rendering(tokenizer, name):
    messages, kwargs, expected = CONVERSATIONS[name]
    assert render(tokenizer, messages, **kwargs) == expected


CHARACTERS = st.characters(exclude_categories=["Cs"])  # everything that UTF-8 can encode
TEXT = st.text(CHARACTERS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
ARGUMENTS = st.dictionaries(TEXT, JSON, max_size=3)
NASTY = ["<&'\">", '"\\" \\n', "".join(map(chr, range(32))), "\x7f\u2028é🙂", {"items": 1, "keys": {"get": []}}, -0.0]


@settings(max_examples=60, deadline=None)
@given(tools=st.lists(st.dictionaries(TEXT, JSON, min_size=1, max_size=3), max_size=3), arguments=ARGUMENTS)
def test_json_equals_that_of_python(tokenizer, tools, arguments):
    tools = [*tools, {str(i): value for i, value in enumerate(NASTY)}]
    call = {"function": {"name": "f\n", "arguments": arguments}}
    text = render(tokenizer, [user(), assistant(tool_calls=[call])], tools=tools)
    assert text.split("<tools>\n")[1].split("\n</tools>")[0] == "\n".join(
        json.dumps(tool, ensure_ascii=False) for tool in tools
    )
    expected = json.dumps(call["function"], ensure_ascii=False)
    assert text.endswith(f"assistant\n<tool_call>\n{expected}\n</tool_call><|im_end|>\n")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_both_ways_render_the_same(tokenizer, data):
    content = TEXT | st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXT), max_size=3)
    function = st.fixed_dictionaries({"name": TEXT}, optional={"arguments": ARGUMENTS | TEXT})
    calls = st.lists(st.fixed_dictionaries({"function": function}), max_size=2)
    optional = {"content": content | st.none(), "reasoning_content": TEXT, "tool_calls": calls | st.none()}
    message = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": content})
    message |= st.fixed_dictionaries({"role": st.just("assistant")}, optional=optional)
    messages = data.draw(st.lists(message, min_size=1, max_size=6))
    kwargs = {"add_generation_prompt": data.draw(st.booleans()), "enable_thinking": data.draw(st.booleans())}
    assert render(tokenizer, messages, **kwargs).startswith("<|im_start|>system\n")


BAD_CONVERSATIONS = {
    "role of a message must be": [{"role": "robot", "content": "Hi"}],
    "of role user must be a text": [{"role": "user", "content": 3}],
    "of role tool must be a text": [{"role": "tool", "content": {"result": 3}}],
    "of role system must be a text": [{"role": "system"}],
    "of role assistant must be a text": [assistant(True)],
    "a part that is no text": [user([{"type": "image", "url": "a.png"}])],
    "reasoning_content must be": [assistant(reasoning_content=["a"])],
    "must be a list of calls": [assistant(tool_calls=CALL)],
    "must have a function": [assistant(tool_calls=[CALL["function"]])],
    "and that a name": [assistant(tool_calls=[{"function": {"arguments": {}}}])],
    "must be an object or JSON text": [assistant(tool_calls=[{"function": {"name": "f", "arguments": [1]}}])],
    "cannot be written as JSON": [assistant(tool_calls=[{"function": {"name": "f", "arguments": {"a": 1e999}}}])],
}


@pytest.mark.parametrize("reason", BAD_CONVERSATIONS)
def test_bad_conversations(tokenizer, reason):
    with pytest.raises(jinja2.TemplateError, match=reason):
        tokenizer.apply_chat_template(BAD_CONVERSATIONS[reason], tokenize=False)
    with pytest.raises(jinja2.TemplateError, match=reason):
        PLAIN.render(messages=BAD_CONVERSATIONS[reason])
    with pytest.raises(jinja2.TemplateError, match="raise_exception"):
        compile_plain().render(messages=BAD_CONVERSATIONS[reason])


@pytest.mark.parametrize(
    ("message", "field", "end"),
    [
        (assistant("def f("), True, "<|im_start|>assistant\ndef f("),
        (assistant([{"type": "text", "text": "def f(  "}]), True, "<|im_start|>assistant\ndef f(  "),
        (assistant(reasoning_content="I"), "reasoning_content", "<|im_start|>assistant\n<think>\nI"),
    ],
)
def test_continue_final_message(tokenizer, message, field, end):
    text = tokenizer.apply_chat_template([user(), message], tokenize=False, continue_final_message=field)
    assert text == SYSTEM + "<|im_start|>user\nHi<|im_end|>\n" + end


# -- the assistant's text, for training ------------------------------------------------------------------------------


def test_assistant_mask(tokenizer):
    template = training_chat_template(TEMPLATE)
    messages, *_ = CONVERSATIONS["reasoning since the last question"]
    messages = [*messages, assistant("Look:", tool_calls=[CALL, CALL]), user("e")]
    encoding = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    spans, last = [], 0
    for token, mask in zip(encoding["input_ids"], encoding["assistant_masks"], strict=True):
        if mask and not last:
            spans.append([])
        if mask:
            spans[-1].append(token)
        last = mask
    assert [tokenizer.decode(span) for span in spans] == [
        "b<|im_end|>",
        f"{CALL_TEXT}<|im_end|>",
        "d<|im_end|>",
        f"Look:\n{CALL_TEXT}\n{CALL_TEXT}<|im_end|>",
    ]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_training_template_renders_the_same(tokenizer, name):
    messages, kwargs, expected = CONVERSATIONS[name]
    template = training_chat_template(TEMPLATE)
    assert tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **kwargs) == expected


def test_training_template_needs_the_marks():
    for template in ("{{ messages }}", training_chat_template(TEMPLATE), TEMPLATE + TEMPLATE):
        with pytest.raises(ValueError, match="generation"):
            training_chat_template(template)


# -- reading replies -------------------------------------------------------------------------------------------------


def call(name, arguments=None):
    return {"type": "function", "function": {"name": name, "arguments": arguments or {}}}


def reply(content="", calls=(), reasoning=None):
    message = {"role": "assistant", "content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    return message | ({"tool_calls": list(calls)} if calls else {})


F, G = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', '<tool_call>{"name": "g"}</tool_call>'
F_CALL, G_CALL = call("f", {"a": 1}), call("g")
WELL_FORMED = {
    "": reply(),
    " \n ": reply(),
    "Hi": reply("Hi"),
    " Hi \n\n you \n": reply("Hi \n\n you"),
    "Hi<|im_end|>\n<|endoftext|>": reply("Hi"),
    "<think>\nHm.\n</think>\n\nHi<|im_end|>": reply("Hi", reasoning="Hm."),
    "<think>Hm, <tool_call> and <think>.</think>Hi": reply("Hi", reasoning="Hm, <tool_call> and <think>."),
    "<think>\n\n</think>\n\nHi": reply("Hi"),
    "<think>\nHm.": reply(reasoning="Hm."),
    F: reply(calls=[F_CALL]),
    f"Look:\n{F}\n{F}<|im_end|>": reply("Look:", [F_CALL, F_CALL]),
    f"<think>Hm.</think>\n\n{F}\n": reply(calls=[F_CALL], reasoning="Hm."),
    f"One. {F} Two.\n\n{F}\nThree.": reply("One.\nTwo.\nThree.", [F_CALL, F_CALL]),
    f"Hi <think>{F}</think>": reply("Hi <think>\n</think>", [F_CALL]),
    '<tool_call>{"name": "f", "arguments": {"a": {"b": [{"c": "}"}]}}}</tool_call>': reply(
        calls=[call("f", {"a": {"b": [{"c": "}"}]}})]
    ),
    '<tool_call>{"name": "f", "arguments": {"a": "<tool_call>\\"\\\\"}}</tool_call>': reply(
        calls=[call("f", {"a": '<tool_call>"\\'})]
    ),
    '<tool_call>{"name": "f", "arguments": {"a": 1}}': reply(calls=[F_CALL]),
}
IN_STRING = '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>'
OTHER = {  # replies that only this parser accepts, and texts that are not calls
    G: reply(calls=[G_CALL]),
    IN_STRING: reply(calls=[call("f", {"a": "</tool_call>"})]),
    '<tool_call>{"name": "f", "arguments": {"a": "b\nc"}}</tool_call>': reply(calls=[call("f", {"a": "b\nc"})]),
    '<tool_call>{"name": "f"}\n</tool_c': reply(calls=[call("f")]),
    '<tool_call>{"name": "f"}<|im_end|>': reply(calls=[call("f")]),
    '<tool_call>{"name": "f", "argu': reply('<tool_call>{"name": "f", "argu'),
    '<tool_call>{"name": "f, "arguments": {}}</tool_call> so': reply(
        '<tool_call>{"name": "f, "arguments": {}}</tool_call> so'
    ),
    f'<tool_call>{{"name": "f, "arguments": {{}}}}</tool_call>\n{G}': reply(
        '<tool_call>{"name": "f, "arguments": {}}</tool_call>', [G_CALL]
    ),
    f'<tool_call>{{"name": "f"}}}}</tool_call>{G}': reply('<tool_call>{"name": "f"}}</tool_call>', [G_CALL]),
    f'<tool_call>{{"name": "f"}} {G}': reply('<tool_call>{"name": "f"}', [G_CALL]),
    f"<tool_call>{G}</tool_call>": reply("<tool_call>\n</tool_call>", [G_CALL]),
    "The <tool_call> tag": reply("The <tool_call> tag"),
    "The <tool_call>": reply("The <tool_call>"),
    "A <tool_": reply("A <tool_"),
    "A <|im_end": reply("A <|im_end"),
    "A <|im_end|> B<|im_end|>": reply("A <|im_end|> B"),
    "Hm.\n</think>\n\nHi": reply("Hm.\n</think>\n\nHi"),
    "<thin": reply("<thin"),
    "<tool_call>[]</tool_call>": reply("<tool_call>[]</tool_call>"),
    "<tool_call>{}</tool_call>": reply("<tool_call>{}</tool_call>"),
    '<tool_call>{"name": 1}</tool_call>': reply('<tool_call>{"name": 1}</tool_call>'),
    '<tool_call>{"name": "f", "arguments": "a"}</tool_call>': reply(
        '<tool_call>{"name": "f", "arguments": "a"}</tool_call>'
    ),
    '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>': reply(
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'
    ),
    '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>': reply(
        '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>'
    ),
    '<tool_call>{"name": "\\ud800"}</tool_call>': reply('<tool_call>{"name": "\\ud800"}</tool_call>'),
    "<tool_call>" + '{"a":' * 20_000 + "</tool_call>": reply("<tool_call>" + '{"a":' * 20_000 + "</tool_call>"),
}


def streamed(pieces, prefix=""):
    """Returns the message that a client assembles from the deltas, and the stream's own message."""
    stream = ToolCallStream(prefix)
    deltas = [delta for piece in pieces for delta in stream.feed(piece)] + stream.finish()
    message = reply()
    for delta in deltas:
        ((field, value),) = delta.items()
        assert value, "an empty delta"
        if field == "tool_calls":
            (item,) = value
            calls = message.setdefault(field, [])
            assert item["index"] == len(calls)
            calls.append({key: value for key, value in item.items() if key != "index"})
        else:
            message[field] = message.get(field, "") + value
    return message, stream.message


def check_reading(text, pieces=None):
    message = parse_response(text)
    for parts in [pieces] if pieces is not None else [list(text), [text[i : i + 7] for i in range(0, len(text), 7)]]:
        assert "".join(parts) == text
        assert streamed(parts) == (message, message)
    return message


@pytest.mark.parametrize("text", [*WELL_FORMED, *OTHER], ids=range(len(WELL_FORMED) + len(OTHER)))
def test_reading(text):
    assert check_reading(text) == {**WELL_FORMED, **OTHER}[text]


def test_text_is_emitted_at_once():
    """Only whitespace and possible tags are held back. An invalid call becomes text as soon as that is known."""
    stream = ToolCallStream()
    assert stream.feed("Hi ") == [{"content": "Hi"}]
    assert stream.feed("<") == []
    assert stream.feed("b>") == [{"content": " <b>"}]
    assert stream.feed("<tool_call> is") == [{"content": "<tool_call> is"}]
    assert stream.feed(F[:-1]) == []
    assert stream.feed(F[-1:]) == [{"tool_calls": [{"index": 0, **F_CALL}]}]
    assert stream.finish() == stream.finish() == []
    with pytest.raises(ValueError, match="finished"):
        stream.feed("more")


def test_prefix(tokenizer):
    kwargs = {"add_generation_prompt": True, "enable_thinking": False}
    prompt = render(tokenizer, [user(), assistant("Old."), user()], **kwargs)
    assert parse_response("Hi", prompt) == reply("Hi")
    prompt = prompt.removesuffix("\n\n</think>\n\n")  # the think block is open
    assert parse_response("Hm.\n</think>\n\nHi", prompt) == reply("Hi", reasoning="Hm.")
    assert streamed(["Hm.</thi", "nk>Hi"], prompt)[0] == reply("Hi", reasoning="Hm.")
    prompt = tokenizer.apply_chat_template([user(), assistant("def f(")], tokenize=False, continue_final_message=True)
    assert parse_response("):", prompt) == reply("def f():")
    assert streamed(["):"], prompt) == (reply("):"), reply("def f():"))


PIECES = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>", "<|endoftext|>", "<", "\n", " ", "é"]
PIECES += ['{"name": "f"', ', "arguments": ', "{", "}", '"', "\\", '"a": 1', "[", "]", "word", "null", "\x1c", "\u2028"]
REPLIES = st.lists(st.sampled_from([*PIECES, F, G, IN_STRING]) | st.text(CHARACTERS, max_size=5), max_size=20).map(
    "".join
)


def cut(text, seed):
    rng = random.Random(seed)
    pieces = []
    while text:
        size = rng.choice([1, 2, 3, 8, 30])
        pieces.append(text[:size])
        text = text[size:]
    return pieces


ENDINGS = r"(?:<\|im_end\|>|<\|endoftext\|>)*"
CALL_PATTERN = r"<tool_call>\{.*?\}(?:</tool_call>|(?:</[a-z_]*)?" + ENDINGS + "$)"


def words(text):
    return "".join(text.split())


@settings(max_examples=400, deadline=None)
@given(text=REPLIES, seed=st.integers(0, 10**6))
def test_any_text_any_cuts_and_no_word_lost(text, seed):
    message = check_reading(text, cut(text, seed))
    for item in message.get("tool_calls", ()):
        assert isinstance(item["function"]["name"], str) and isinstance(item["function"]["arguments"], dict)

    pattern = ""
    if text.lstrip().startswith("<think>"):
        pattern = "<think>" + re.escape(words(message.get("reasoning_content", ""))) + "(?:</think>)?"
    stream = ToolCallStream()
    for delta in stream.feed(text) + stream.finish():
        pattern += CALL_PATTERN if "tool_calls" in delta else re.escape(words(delta.get("content", "")))
    assert re.fullmatch(pattern + ENDINGS, words(text), re.DOTALL)


PROSE = TEXT.map(lambda text: text.replace("<", "").strip())


@settings(max_examples=100, deadline=None)
@given(
    content=PROSE,
    reasoning=PROSE,
    calls=st.lists(st.builds(call, TEXT, ARGUMENTS), max_size=3),
    ending=st.sampled_from(["", "\n", "\n<|endoftext|>", "<|endoftext|><|endoftext|>"]),
)
def test_rendered_messages_are_parsed_back(tokenizer, content, reasoning, calls, ending):
    message = reply(content, calls, reasoning or None)
    prompt = render(tokenizer, [user()], add_generation_prompt=True)
    text = render(tokenizer, [user(), message]).removeprefix(prompt).removesuffix("\n") + ending
    assert parse_response(text) == parse_response(text, prompt) == message
    if "</tool_call>" not in json.dumps([item["function"] for item in calls]):
        assert parse_by_library(tokenizer, text, prompt) == message


# -- reading replies with Transformers -------------------------------------------------------------------------------


def parse_by_library(tokenizer, text, prefix=""):
    assert tokenizer.response_template == RESPONSE_TEMPLATE
    return {"content": ""} | tokenizer.parse_response(text, prefix=prefix)


@pytest.mark.parametrize("text", WELL_FORMED, ids=range(len(WELL_FORMED)))
def test_library_reads_the_same(tokenizer, text):
    assert parse_by_library(tokenizer, text) == WELL_FORMED[text]
    parser = tokenizer.get_response_parser(prefix="")
    for piece in cut(text, 0):
        parser.feed(piece)
    message, _ = parser.finalize()
    assert {"content": ""} | message == WELL_FORMED[text]


def test_library_reads_the_prefix(tokenizer):
    prompt = render(tokenizer, [user(), assistant("Old.")], add_generation_prompt=True) + "<think>\n"
    text = f"Hm.\n</think>\n\nHi\n{F}<|im_end|>"
    assert parse_by_library(tokenizer, text, prompt) == parse_response(text, prompt) == reply("Hi", [F_CALL], "Hm.")


def test_where_the_library_differs(tokenizer):
    for text in (
        IN_STRING,
        '<tool_call>{"name": "f", "argu',
        "The <tool_call> tag",
        '<tool_call>{"name": "f}</tool_call>',
    ):
        with pytest.raises(ValueError, match="JSON"):
            parse_by_library(tokenizer, text)
    assert parse_by_library(tokenizer, "<tool_call>[]</tool_call>")["tool_calls"] == [
        {"type": "function", "function": []}
    ]


def test_a_prefix_without_the_assistants_start_is_not_a_reply():
    assert parse_response("Hi", "user: hello")["content"] == "Hi"


def test_a_call_with_its_arguments_under_another_name_is_text():
    text = '<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>'
    message = parse_response(text)
    assert "tool_calls" not in message and message["content"] == text
