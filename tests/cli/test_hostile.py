# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Hostile checkpoints, prompts and replies: they must not hang a command, fill the memory or control the terminal."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import run
from paths import SMALL
from rich.console import Console
from tiny import tiny_model
from vendor_checkpoints import write_vendor

from iquest_plt import cli
from iquest_plt.cli.conversation import Conversation
from iquest_plt.cli.diagnose import token_bar
from iquest_plt.cli.streamer import print_text
from iquest_plt.conversion.card import license_of
from iquest_plt.conversion.checkpoint import Checkpoint, StoredTensor, read_json
from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.limits import run_limited
from iquest_plt.conversion.tokenizer import load_tokenizer
from iquest_plt.conversion.verify import verify
from iquest_plt.conversion.writer import new_folder
from iquest_plt.hub_plt import CARD_FIELDS, card_fields
from iquest_plt.serving.transformers_cli import check_model
from iquest_plt.tokenization.tool_calls import RESPONSE_TEMPLATE, ToolCallStream, parse_response
from iquest_plt.training.options import parse_finetune
from iquest_plt.utils.terminal import printable


@pytest.fixture(scope="module")
def vendor(tmp_path_factory):
    return write_vendor(tmp_path_factory.mktemp("vendor") / "source", tiny_model())


@pytest.fixture
def source(vendor, tmp_path):
    return Path(shutil.copytree(vendor, tmp_path / "source"))


@pytest.fixture(scope="module")
def converted_small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "target"
    convert(str(SMALL), path)
    return path


@pytest.fixture
def small(converted_small, tmp_path):
    return Path(shutil.copytree(converted_small, tmp_path / "small"))


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# -- model cards -------------------------------------------------------------------------------------------------------

LAUGHS = "\n".join(["a0: &a0 {b: c}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9))])
RESULTS = "\n".join(
    [
        f"m: &m [&v {{type: m, value: 1}}{', *v' * 1000}]",
        "x: &x {task: {type: t}, dataset: {name: d, type: d}, metrics: *m}",
        f"y: &y [*x{', *x' * 1000}]",
        "model-index:",
        *["- {name: n, results: *y}"] * 100,
    ]
)
CARDS = {
    "aliases": f"---\nlicense: mit\n{LAUGHS}\n---\n",
    "aliases in model-index": f"---\nlicense: mit\n{RESULTS}\n---\n",
    "newlines": "---\nlicense: mit\n" + "\n" * 900_000,
    "spaces": " " * 900_000 + "---\nlicense: mit\n",
    "nesting": "---\nlicense: mit\na: " + "[" * 900_000 + "\n---\n",
    "nested keys": "---\nlicense: mit\n" + "? " * 400_000 + "\n---\n",
    "anchors": "---\nlicense: mit\n" + "".join(f"a{i}: &a{i} x\n" for i in range(50_000)) + "---\n",
    "a long licence": "---\nlicense: " + "x" * 900_000 + "\n---\n",
}
NO_LICENSE = {"newlines", "spaces", "nesting", "nested keys", "a long licence"}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_is_read_quickly(card, tmp_path):
    (tmp_path / "README.md").write_text(CARDS[card])
    found = run_limited(lambda: license_of(tmp_path), 15)
    assert found == ({} if card in NO_LICENSE else {"license": "mit"})


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: 'mit'\r", {"license": "mit"}),
        (
            "tags: [a, {b: c}]\nlicense: other\nlicense_name: n\nmore: {license: no}",
            {"license": "other", "license_name": "n"},
        ),
        ("license: [mit, apache-2.0]", {}),
        ("license: 3", {}),
        ("license: null", {}),
        ("license: true", {}),
        ('license: "3"', {"license": "3"}),
        ('license: "mit\\e[31m"', {}),
        ('license: "a\\nb"', {}),
        ("[license, mit]", {}),
        ("- license\n- mit", {}),
        ("license: mit\n  b: :", {}),
        ("? [license]\n: mit", {}),
        ("", {}),
    ],
)
def test_licence_fields_of_a_card(block, expected, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{block}\n---\n# Model\nlicense: none\n")
    assert license_of(tmp_path) == expected


def test_a_card_full_of_aliases_does_not_hang_a_conversion(source, tmp_path):
    (source / "README.md").write_text(CARDS["aliases"])
    run_limited(lambda: convert(str(source), tmp_path / "target") and None, 60)
    assert "license: mit" in (tmp_path / "target" / "README.md").read_text()


@pytest.mark.parametrize("card", ["nesting", "nested keys", "a long text", "many parts"])
def test_a_card_that_is_refused_says_what_to_do(card, tmp_path):
    others = {"a long text": "x" * 1_000_000, "many parts": "a: [" + "a," * 480_000}
    (tmp_path / "README.md").write_text(CARDS.get(card) or f"---\nlicense: mit\n{others[card]}\n---\n")
    with pytest.raises(ValueError, match=r"README\.md' has more than .*\. Load the model from a folder"):
        run_limited(lambda: card_fields(tmp_path / "README.md", CARD_FIELDS), 5, 1 << 28)


@pytest.mark.parametrize("card", ["aliases", "aliases in model-index", "anchors"])
def test_a_card_of_many_aliases_takes_little_memory(card, tmp_path):
    (tmp_path / "README.md").write_text(CARDS[card])
    assert run_limited(lambda: card_fields(tmp_path / "README.md", CARD_FIELDS), 5, 1 << 28) == {"license": "mit"}


def test_aliases_of_a_card_are_followed(tmp_path):
    block = "x: &x own\nlicense: other\nlicense_name: *x\nmore: &m [a/b, *x]\nbase_model: *m\nlicense_link: &r [*r]"
    (tmp_path / "README.md").write_text(f"---\n{block}\n---\n")
    expected = {"license": "other", "license_name": "own", "base_model": ["a/b", "own"]}
    assert card_fields(tmp_path / "README.md", CARD_FIELDS) == expected


# -- JSON --------------------------------------------------------------------------------------------------------------


def nested(depth: int, opening: str = '{"a":', closing: str = "}") -> str:
    return opening * depth + "1" + closing * depth


BAD_JSON = {
    "900 objects deep": (nested(900), "nested more than 100 levels"),
    "900 lists deep": ('{"a":' + nested(900, "[", "]") + "}", "nested more than 100 levels"),
    "100,000 deep": (nested(100_000), "not valid JSON"),
    "never closed": ("[" * 1_000_000, "not valid JSON"),
    "half a character": ('{"a": "\\ud800"}', "half of a surrogate pair"),
    "a key of half a character": ('{"a": {"\\udfff": 1}}', "half of a surrogate pair"),
    "a long number": ('{"a": ' + "1" * 1_000_000 + "}", "not valid JSON"),
}
JSON_FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
JSON_FILES += ["added_tokens.json", "model.safetensors.index.json", "manifest.json"]


@pytest.mark.parametrize("content", BAD_JSON)
def test_errors_about_json_name_the_file(content, tmp_path):
    text, match = BAD_JSON[content]
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(ValueError, match=r"^some\.json is not valid JSON") as error:
        read_json(tmp_path / "some.json")
    assert match in str(error.value) and len(str(error.value)) < 300


def test_json_of_ordinary_depth_is_read(tmp_path):
    (tmp_path / "some.json").write_text(nested(100))
    assert read_json(tmp_path / "some.json")


@pytest.mark.parametrize("content", ["900 objects deep", "half a character"])
@pytest.mark.parametrize("name", JSON_FILES)
def test_errors_name_every_json_file(name, content, small, tmp_path):
    if name == "model.safetensors.index.json":
        (small / "model.safetensors").rename(small / "model-00001-of-00001.safetensors")
    (small / name).write_text(BAD_JSON[content][0])
    assert any(problem.startswith(f"{name} is not valid JSON") for problem in verify(small)["problems"])
    if name != "manifest.json":
        with pytest.raises(ValueError, match=f"^{name} is not valid JSON"):
            convert(str(small), tmp_path / "target")
        assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "fields", [{"rms_norm_eps": "1e-5"}, {"bos_token_id": "1"}, {"eos_token_id": [2, -1]}, {"plt_num_loops": 1_000_000}]
)
def test_convert_and_verify_name_fields_of_the_wrong_type(fields, source, tmp_path):
    (name,) = fields
    convert(str(source), tmp_path / "target")
    for folder in (source, tmp_path / "target"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ValueError, match=rf"^config\.json: `{name}` must be "):
        convert(str(source), tmp_path / "other")
    assert any(f"config.json: `{name}` must be " in problem for problem in verify(tmp_path / "target")["problems"])


def test_many_files_of_few_tensors_take_linear_time():
    number = 20_000
    files = [f"{i}.safetensors" for i in range(number)]
    tensors = {f"t{i}": StoredTensor(Path(file), None, (1,), 0, 4) for i, file in enumerate(files)}
    checkpoint = Checkpoint(Path("."), tensors, files)
    found = []
    assert seconds(lambda: found.extend(checkpoint.of_file(file) for file in files)) < 15
    assert found == [{name: tensor} for name, tensor in tensors.items()]


# -- templates and tokenizers ------------------------------------------------------------------------------------------

TEMPLATES = {
    "a long text": ("{{ 'a' * 3000000000 }}", "MemoryError"),
    "doubled texts": (
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "MemoryError",
    ),
    "a wide field": ("{{ '%3000000000d' % 1 }}", "MemoryError"),
    "a long power": ("{{ 10 ** (10 ** 9) }}", "TimeoutError"),
    "loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "TimeoutError"),
    "much output": ("{% for i in range(99999) %}{{ 'a' * 10000000 }}{% endfor %}", "MemoryError"),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_bounded_in_time_and_memory(template, small, monkeypatch):
    import resource

    text, kind = TEMPLATES[template]
    # Memory is exhausted within a second, but takes longer on a busy machine.
    monkeypatch.setattr("iquest_plt.conversion.verify.TEMPLATE_SECONDS", 3 if kind == "TimeoutError" else 20)
    (small / "chat_template.jinja").write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    problems = verify(small)["problems"]
    assert time.perf_counter() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert any(f"The chat template does not render: {kind}" in problem for problem in problems), problems


def test_a_chat_is_bounded_as_well(small, monkeypatch):
    monkeypatch.setattr("iquest_plt.conversion.tokenizer.TEMPLATE_SECONDS", 2)
    (small / "chat_template.jinja").write_text(TEMPLATES["loops"][0])
    conversation = Conversation(tiny_model(), load_tokenizer(small))
    with pytest.raises(TimeoutError):
        conversation.ask("Hello")
    conversation.tokenizer.chat_template = TEMPLATES["a long text"][0]
    with pytest.raises(MemoryError):
        conversation.ask("Hello")


def test_a_served_model_is_bounded_as_well(small, monkeypatch, capsys):
    monkeypatch.setattr("iquest_plt.conversion.tokenizer.TEMPLATE_SECONDS", 2)
    monkeypatch.setattr("iquest_plt.conversion.tokenizer.TOKENIZER_BYTES", 1 << 28)
    check_model(str(small))
    (small / "chat_template.jinja").write_text("{{ raise_exception('system first') }}")  # an error for the client
    check_model(str(small))
    for kind in ("loops", "a long text"):
        (small / "chat_template.jinja").write_text(TEMPLATES[kind][0])
        with pytest.raises(ValueError, match=r"^The chat template cannot be used: it .*\. Replace chat_template"):
            check_model(str(small))
    (small / "generation_config.json").write_text(nested(900))
    with pytest.raises(ValueError, match=r"^generation_config\.json is not valid JSON"):
        check_model(str(small))
    (small / "generation_config.json").unlink()
    bomb(small)
    with pytest.raises(ValueError, match=r"^tokenizer\.json: it takes more than 268 MB"):
        check_model(str(small))
    assert capsys.readouterr().err == ""
    check_model("no/such\x1bmodel")  # left to the server to report


def test_a_server_does_not_start_with_a_refused_model(small):
    bomb(small)
    program = "from iquest_plt.conversion import tokenizer; tokenizer.TOKENIZER_BYTES = 1 << 28\n"
    program += "from iquest_plt.serving.transformers_cli import main; main()"
    command = [sys.executable, "-c", program, "serve", str(small)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: tokenizer.json: it takes more than 268 MB of memory, or crashes"


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors.index.json"])
def test_json_is_checked_before_transformers_reads_it(name, small):
    (small / name).write_text(nested(900))
    code, _, error = run("generate", small, "--prompt", "a")
    assert code == 1 and error.startswith(f"{name} is not valid JSON: it is nested more than 100 levels deep")


def test_training_is_bounded_as_well(small, monkeypatch):
    common = pytest.importorskip("iquest_plt.training.common")
    monkeypatch.setattr("iquest_plt.conversion.tokenizer.TOKENIZER_BYTES", 1 << 28)
    args = SimpleNamespace(model=small, length=16, num_loops=None)
    assert common.load_model(args)[1].chat_template
    bomb(small)
    with pytest.raises(ValueError, match=r"^tokenizer\.json: it takes more than 268 MB"):
        common.load_model(args)
    (small / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        common.load_model(args)


def test_templates_of_training_are_bounded_as_well(small, monkeypatch):
    sft = pytest.importorskip("iquest_plt.training.sft")
    humaneval = pytest.importorskip("iquest_plt.training.humaneval")
    monkeypatch.setattr("iquest_plt.conversion.tokenizer.TEMPLATE_SECONDS", 2)
    (small / "chat_template.jinja").write_text(TEMPLATES["loops"][0])
    tokenizer = load_tokenizer(small)
    message = r"^The chat template cannot be used: it takes longer than 2 seconds\. Replace"
    with pytest.raises(ValueError, match=message):
        sft.make_trainer(SimpleNamespace(model=small), None, tokenizer)
    with pytest.raises(TimeoutError):
        humaneval.complete(None, tokenizer, [{"prompt": "def f():"}], chat=True)


def test_an_error_of_a_template_is_reported(small):
    (small / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    assert any("does not render" in problem and "no such role" in problem for problem in verify(small)["problems"])


def bomb(folder: Path) -> None:
    """Installs a normalizer that turns one character into 2^60. Added tokens are normalized on load."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [doubling] * 60}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_a_tokenizer_that_grows_texts_is_refused(small, source, tmp_path, monkeypatch):
    monkeypatch.setattr("iquest_plt.conversion.tokenizer.TOKENIZER_BYTES", 1 << 28)
    bomb(small)
    with pytest.raises(ValueError, match=r"^tokenizer\.json: it takes more than 268 MB"):
        load_tokenizer(small)
    assert any("it takes more than" in problem for problem in verify(small)["problems"])
    shutil.copy(small / "tokenizer.json", source)
    with pytest.raises(ValueError, match=r"^tokenizer\.json: it takes more than"):
        convert(str(source), tmp_path / "target")


def test_a_sentencepiece_model_is_bounded(source, tmp_path, monkeypatch):
    monkeypatch.setattr("iquest_plt.conversion.tokenizer.CONVERSION_SECONDS", 1)
    monkeypatch.setattr("iquest_plt.conversion.tokenizer.spm.convert_folder", lambda folder: time.sleep(30))
    (source / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^tokenizer\.model: it takes longer than 1 seconds"):
        convert(str(source), tmp_path / "target")


def test_a_bounded_call_returns_and_raises():
    assert run_limited(lambda: ["é\ud800", 1], 20) == ["é\ud800", 1]
    with pytest.raises(ValueError, match=r"^ZeroDivisionError: division by zero$"):
        run_limited(lambda: 1 / 0, 20)
    with pytest.raises(ValueError, match=r"^invalid literal"):
        run_limited(lambda: int("no"), 20)
    with pytest.raises(MemoryError):
        run_limited(lambda: os._exit(1), 20)
    results = []
    thread = threading.Thread(target=lambda: results.append(run_limited(lambda: "in a thread", 20)))
    thread.start()
    thread.join()
    assert results == ["in a thread"]


def test_the_callers_alarm_is_kept(converted_small):
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    signal.alarm(300)
    try:
        verify(converted_small)
        assert signal.alarm(0) > 0
        signal.raise_signal(signal.SIGALRM)
        assert rang == [True]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# -- replies -----------------------------------------------------------------------------------------------------------

N = 400_000
REPLIES = {
    "broken calls": '<tool_call>{"' * N,
    "calls without an object": "<tool_call>x" * N,
    "calls without a name": "<tool_call>{}</tool_call>" * (N // 4),
    "strings in calls": '<tool_call>{"":"' * N,
    "thoughts": "<think>" + "a <" * N,
    "ends": "<|im_end|> " * N,
    "spaces": "a" + " " * (4 * N) + "b",
}


@pytest.mark.parametrize("kind", REPLIES)
def test_a_reply_is_parsed_in_linear_time(kind):
    text = REPLIES[kind]
    message = {}
    assert seconds(lambda: message.update(parse_response(text))) < 40
    said = message["content"] + message.get("reasoning_content", "")
    kept = text.replace("<|im_end|>", "").removeprefix("<think>")
    assert "".join(said.split()) == "".join(kept.split())


def test_a_long_call_is_streamed_in_linear_time():
    stream, deltas = ToolCallStream(), []
    text = '<tool_call>{"name": "f", "arguments": {"text": "' + "ab\\n" * 400_000 + '"}}</tool_call>'

    def read():
        for start in range(0, len(text), 2):
            deltas.extend(stream.feed(text[start : start + 2]))
        deltas.extend(stream.finish())

    assert seconds(read) < 60
    (delta,) = deltas
    assert delta["tool_calls"][0]["function"]["arguments"] == {"text": "ab\n" * 400_000}


def test_the_stored_grammar_scans_whitespace_once(small):
    tokenizer = load_tokenizer(small)
    tokenizer.response_template = RESPONSE_TEMPLATE
    found = {}
    assert seconds(lambda: found.update(tokenizer.parse_response("a" + " " * 40_000 + "b", prefix=""))) < 5
    assert found["content"].split() == ["a", "b"]


# -- terminals ---------------------------------------------------------------------------------------------------------

ESCAPES = "\x1b]0;title\x07\x1b[31mred\x9b1m\r\u202ereversed\udcff"


def test_hidden_characters_are_escaped():
    shown = printable(ESCAPES)
    assert shown == r"\x1b]0;title\x07\x1b[31mred\x9b1m\r\u202ereversed\udcff"
    assert printable("a\n\tb", line_ends=True) == "a\n\tb" and printable("a\n\tb") == r"a\n\tb"
    assert printable("Größe 中文 🙂") == "Größe 中文 🙂"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_file_name_cannot_control_the_terminal(options, small):
    try:
        (small / "e\x1b[31mvil.py").touch()
        (small / "b\udcff\u202e.py").touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    code, output, _ = run("verify", small, *options)
    assert code == 1 and "vil.py" in output
    assert all(character.isprintable() or character == "\n" for character in output)
    if options:
        assert "manifest.json does not list e\x1b[31mvil.py." in json.loads(output)["problems"]


def test_an_error_cannot_control_the_terminal(monkeypatch, capsys):
    for arguments, code in ((["info", "no\x1b[31m/such\udcff/folder"], None), (["verify", "a", "b\x1b[31m"], 2)):
        monkeypatch.setattr(sys, "argv", ["iquest-plt", *arguments])
        with pytest.raises(SystemExit) as error:
            cli.main()
        said = capsys.readouterr().err + str(error.value.code)
        assert r"\x1b[31m" in said and "\x1b[31m" not in said
        assert code in (None, error.value.code)


def test_an_error_of_training_cannot_control_the_terminal(tmp_path):
    common = pytest.importorskip("iquest_plt.training.common")
    humaneval = pytest.importorskip("iquest_plt.training.humaneval")
    folder = tmp_path / "no\x1b[31m"
    args = parse_finetune(["--model", str(folder), "--data", str(folder), "--out", str(tmp_path)])
    folder.write_text("{}")
    for command in (
        lambda: common.run(common.load_model, args),
        lambda: humaneval.main(["--self-check", "--problems", str(folder)]),
    ):
        with pytest.raises(SystemExit, match=r"no\\x1b\[31m") as error:
            command()
        assert error.value.code.isprintable()


def test_a_note_of_the_server_cannot_control_the_terminal(small, capsys):
    (small / "chat_template.jinja").unlink()
    small = small.rename(small.with_name("small\x1b[31m\u202e"))
    check_model(str(small))
    said = capsys.readouterr().err
    assert r"small\x1b[31m\u202e has no chat template" in said and said[:-1].isprintable()


def test_a_progress_bar_cannot_control_the_terminal(monkeypatch):
    shown = io.StringIO()
    console = partial(Console, file=shown, force_terminal=True, width=200)
    monkeypatch.setattr("iquest_plt.cli.diagnose.Console", lambda stderr: console())
    with token_bar("a\x1b[2J{task.id.x}[/b]\u202e") as progress:
        progress(1, 2)
    assert r"a\x1b[2J{task.id.x}[/b]\u202e" in shown.getvalue() and "\x1b[2J" not in shown.getvalue()


def test_a_reply_cannot_control_the_terminal(monkeypatch, capsys):
    print_text("a\x1b[31m\n")  # a file gets the model's text unchanged
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_text("b\x1b[31m\n")
    assert capsys.readouterr().out == "a\x1b[31m\nb\\x1b[31m\n"


# -- text that is not UTF-8 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["generate", SMALL, "--prompt", "a\udcff"], "--prompt"),
        (["generate", SMALL, "--prompt", "a", "--suffix", "a\udcff"], "--suffix"),
        (["generate", SMALL, "--prompt", "a", "--stop", "a\udcff"], "--stop"),
        (["chat", SMALL, "--message", "a\udcff"], "--message"),
        (["chat", SMALL, "--message", "a", "--system", "a\udcff"], "--system"),
    ],
)
def test_errors_name_a_prompt_that_is_not_text(arguments, name):
    assert run(*arguments) == (1, "", f"{name} is not UTF-8 text. Convert it to UTF-8.")


@pytest.mark.parametrize("mode", ["0", "1"])
def test_errors_name_standard_input_that_is_not_text(mode):
    command = [sys.executable, "-m", "iquest_plt.cli", "generate", SMALL]
    environment = os.environ | {"PYTHONUTF8": mode, "PYTHONIOENCODING": "utf-8" if mode == "0" else ""}
    done = subprocess.run(command, input=b"a\xff", capture_output=True, env=environment, timeout=200)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "error: Standard input is not UTF-8 text. Convert it to UTF-8."


def test_errors_name_a_file_whose_name_is_not_text(source, tmp_path):
    try:
        (source / "LICENSE\udcff").touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    with pytest.raises(ValueError, match=r"'LICENSE\\udcff' is not UTF-8\. Rename the file"):
        convert(str(source), tmp_path / "target")


def test_errors_name_a_source_whose_name_is_not_text(source, tmp_path):
    try:
        source = source.rename(tmp_path / "source\udcff")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    with pytest.raises(ValueError, match=r"source\\udcff' is not UTF-8"):
        convert(str(source), tmp_path / "target")
    assert any("is not UTF-8" in problem for problem in verify(source)["problems"])


# -- processes that are terminated -------------------------------------------------------------------------------------

ENDED = """
import signal, sys
from pathlib import Path
from iquest_plt.conversion.writer import new_folder

# A background process, or one under nohup, inherits that these signals are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

with new_folder(Path(sys.argv[1]), 0) as folder:
    folder.write_text("file", "text")
    print("ready", flush=True)
    import time
    time.sleep(100)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_terminated_process_leaves_nothing(name, tmp_path):
    number = getattr(signal, name)
    command = [sys.executable, "-c", ENDED, tmp_path / "target"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        status = process.wait(60)
    assert not list(tmp_path.iterdir())
    # SIGINT is left to Python, whose status after KeyboardInterrupt is 1 with some versions of imported libraries.
    assert status == -number or (name == "SIGINT" and status == 1)


def test_the_callers_handlers_are_restored(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with new_folder(tmp_path / "one", 0):
        pass
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(RuntimeError), new_folder(tmp_path / "two", 0):
        raise RuntimeError
    assert [signal.getsignal(number) for number in numbers] == before


def test_the_callers_own_handler_runs(tmp_path):
    called = []
    before = signal.signal(signal.SIGTERM, lambda *_: called.append(True))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # like `nohup`
    try:
        with new_folder(tmp_path / "target", 0):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, ignored)
    assert called == [True] and (tmp_path / "target").is_dir()
