# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: its output and exit codes, and that it never shows a traceback."""

import copy
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from command_line import run
from paths import ROOT, SMALL
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from vendor_checkpoints import write_vendor

import iquest_plt
from iquest_plt import cli
from iquest_plt.cli import chat, generate, options
from iquest_plt.cli.common import human_size, parse_size
from iquest_plt.cli.conversation import Conversation
from iquest_plt.cli.streamer import TextPrinter
from iquest_plt.configuration_plt import MAX_LOOPS
from iquest_plt.conversion.convert import FLOATS
from iquest_plt.utils.dtypes import FLOAT_NAMES


# The public options, which scripts rely on.
OPTIONS = {
    "convert": "--to --revision --init --num-loops --window --emb-scale --hidden-scale --gate-on-hidden-states "
    "--gate-on-queries --dtype --quantize --max-shard-size --hard-link --bits --json",
    "verify": "--logits --json",
    "info": "--length --batch --num-loops --dtype --revision --json",
    "generate": "--prompt --suffix --max-new-tokens --num-loops --greedy --temperature --top-p --top-k --stop --seed "
    "--dtype --device --revision --json",
    "chat": "--message --system --max-new-tokens --num-loops --greedy --temperature --top-p --top-k --stop --seed "
    "--dtype --device --revision --json",
    "diagnose": "--data --out --max-loops --text --name --note --max-length --max-tokens --seed --dtype --device "
    "--revision --json",
    "sweep": "--data --out --max-loops --length --new-tokens --max-length --max-tokens --seed --dtype --device "
    "--revision --json",
    "demo": "--host --port --max-new-tokens --dtype --device --revision",
    "serve": "--host --port --max-length --parsers --no-parsers --num-loops --tensor-parallel --dtype --revision",
    **dict.fromkeys(("finetune", "lora", "sft", "humaneval"), ""),  # they have parsers of their own
    "mlx": "",  # all options go to mlx-lm
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "small"
    code, _, error = run("convert", SMALL, path)
    assert code == 0, error
    return path


def test_commands_and_their_options():
    import typer.main

    commands = typer.main.get_command(cli.app).commands
    found = {
        name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands.items()
    }
    found = {name: {flag for flag in flags if flag.startswith("--")} - {"--help"} for name, flags in found.items()}
    assert found == {name: set(options.split()) for name, options in OPTIONS.items()}


def test_every_word_of_the_help_is_visible():
    """rich takes text in square brackets for markup and hides it."""
    import typer.main

    for name, command in typer.main.get_command(cli.app).commands.items():
        code, shown, _ = run(name, "--help", env={"COLUMNS": "400"})
        assert code == 0
        for parameter in command.params:
            assert (parameter.help or "") in shown, (name, parameter.name)
            if isinstance(parameter.show_default, str):
                assert f"{parameter.help} [default: ({parameter.show_default})]" in re.sub(" +", " ", shown)
    assert "[default: (the model's)]" in run("chat", "--help")[1]


def test_limits_that_the_options_repeat():
    """The options cannot import these from modules that import PyTorch."""
    assert options.MAX_LOOPS == MAX_LOOPS
    assert [*FLOATS] == [*FLOAT_NAMES]


def test_version():
    assert run("--version") == (0, f"iquest-plt {importlib.metadata.version('iquest-plt')}\n", "")


LAUNCH = """
import json, sys
from iquest_plt_launcher import main
def launch(*arguments):
    sys.argv = ["iquest-plt", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code
def imported():
    large = "torch transformers peft bitsandbytes numpy huggingface_hub datasets matplotlib gradio"
    return [name for name in large.split() if name in sys.modules]
"""


def launched(code: str, **environment) -> list[str]:
    """Runs `code` in a new process, where `launch` runs the installed command; returns the lines it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "cli" / "launcher")} | environment
    command = [sys.executable, "-c", LAUNCH + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.splitlines()


def test_help_and_wrong_arguments_do_not_import_the_libraries():
    """They take seconds to import."""
    code = f"""
codes = [launch(name, "--help") for name in {list(OPTIONS)!r}] + [launch("--help"), launch("--version")]
codes += [launch("info"), launch("generate", "x", "--num-loops", "0"), launch("finetune")]
print(json.dumps([codes, imported()]))
"""
    codes, large = json.loads(launched(code)[-1])
    assert codes == [0] * (len(OPTIONS) + 2) + [2, 2, 2]
    assert large == []


def test_shell_completion():
    """Its options do not fill the help, and it answers without importing the libraries."""
    shown = run("--help")[1]
    assert "--install-completion" in shown and "--show-completion" not in shown
    environment = {"_IQUEST_PLT_COMPLETE": "complete_bash", "COMP_WORDS": "iquest-plt ge", "COMP_CWORD": "1"}
    assert launched("launch(); print(imported())", **environment) == ["generate", "[]"]


def test_the_installed_command_registers_the_model_type():
    code = f"""
assert launch("info", {str(SMALL)!r}) == 0
from transformers import AutoConfig
print(type(AutoConfig.for_model("iquestpltcoder")).__module__, sys.modules["iquest_plt"].__version__)
"""
    assert launched(code)[-1] == f"iquest_plt.configuration_plt {iquest_plt.__version__}"


def test_the_error_names_the_missing_extra():
    code = """
sys.modules["datasets"] = None
print(launch("finetune", "--model", "x", "--data", "x", "--out", "x"))
"""
    assert (
        launched(code)[-1] == "error: datasets is not installed: pip install '.[training]' in a checkout of iquest-plt"
    )


def test_exit_codes_of_the_installed_command(tmp_path):
    """0 for success, 1 for an error in one line, 2 for wrong arguments; no Python file of a checkpoint is executed."""
    command = [sys.executable, "-m", "iquest_plt.cli"]
    source = write_vendor(tmp_path / "source", tiny_model())

    def result(*arguments):
        return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)

    done = result("convert", source, tmp_path / "target", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["tensors"]
    refused = result("convert", source, tmp_path / "target")
    assert refused.returncode == 1 and not refused.stdout
    assert "Traceback" not in refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "already exists" in line
    assert result("convert", source).returncode == 2
    assert result("transmogrify").returncode == 2


def test_convert_and_verify(tmp_path, monkeypatch):
    source = write_vendor(tmp_path / "source", tiny_model(), "loop_gate_proj", shards=2)
    code, output, _ = run("convert", source, tmp_path / "target", "--dtype", "bfloat16", "--max-shard-size", "20KB")
    assert code == 0 and "39 tensors" in output
    code, output, _ = run("verify", tmp_path / "target", "--json")
    assert code == 0 and json.loads(output)["problems"] == []
    (tmp_path / "target" / "cache_plt.py").unlink()
    code, output, _ = run("verify", tmp_path / "target")
    assert code == 1 and "cache_plt.py is missing" in output.replace("\n", " ")
    assert output.endswith(f"{tmp_path / 'target'}: 1 problem\n")
    monkeypatch.chdir(tmp_path / "target")
    assert run("verify", ".")[1].endswith(f"\n{tmp_path / 'target'}: 1 problem\n")
    (tmp_path / "target" / "grid_plt.py").unlink()
    assert run("verify", ".")[1].endswith("target: 2 problems\n")


def test_convert_to_dense_and_back_with_fields(tmp_path):
    source = write_vendor(tmp_path / "source", tiny_model())
    assert run("convert", source, tmp_path / "dense", "--to", "dense")[0] == 0
    flags = ["--num-loops", 3, "--window", 16, "--emb-scale", 0.5, "--hidden-scale", 0.25, "--gate-on-hidden-states"]
    assert run("convert", tmp_path / "dense", tmp_path / "plt", *flags)[0] == 0
    config = json.loads((tmp_path / "plt" / "config.json").read_text())
    fields = ("num_loops", "window_size", "emb_scale", "hidden_scale", "gate_use_hidden_states")
    assert [config[f"plt_{field}"] for field in fields] == [3, [16, 0], 0.5, 0.25, True]
    code, _, error = run("convert", source, tmp_path / "other", "--num-loops", 3)
    assert code == 1 and "only for a dense source" in error


def test_info_of_the_released_configuration():
    """Compares with the published facts of LoopCoder-V2."""
    code, output, _ = run("info", ROOT, "--length", 131072, "--json")
    facts = json.loads(output)
    assert code == 0
    assert (facts["parameters"], facts["bytes"]["weights"]) == (7_615_749_680, 15_231_499_360)
    assert facts["bytes"]["cache_per_token"] == 57_344
    assert facts["bytes"]["cache_per_sequence"] == 57_344 * (131072 + 64) + 2 * 5120
    code, output, _ = run("info", ROOT, "--length", 1000, "--batch", 3, "--num-loops", 1, "--dtype", "float32")
    assert code == 0 and "344,064,000 bytes" not in output
    assert f"{7_615_749_680 * 4 + 3 * 1000 * 2 * 57_344:,} bytes" in output
    code, output, error = run("info", ROOT, "--length", 131073, "--json")
    assert code == 0 and json.loads(output)["length"] == 131073
    assert error == "note: --length 131073 is more than the model's maximum of 131072 tokens\n"


def test_generate(converted):
    arguments = ["generate", converted, "--prompt", "def read_lines(path):\n", "--max-new-tokens", 16, "--greedy"]
    code, text, _ = run(*arguments)
    assert code == 0
    code, output, _ = run(*arguments, "--json", "--num-loops", 2)
    answer = json.loads(output)
    assert code == 0 and answer["completion"].strip() == text.strip() and answer["new_tokens"] == 16
    code, output, _ = run(*arguments[:2], *arguments[4:], input="def read_lines(path):\n")
    assert code == 0 and output == text
    assert run("generate", converted, "--prompt", "")[0] == 1
    assert run(*arguments, "--temperature", 0.5)[0] == 2


def test_a_prompt_from_the_terminal_is_asked_for(monkeypatch, capsys):
    for is_terminal in (True, False):
        stdin = io.StringIO("import os\n")
        stdin.isatty = lambda answer=is_terminal: answer
        monkeypatch.setattr(sys, "stdin", stdin)
        assert generate.read_standard_input() == "import os\n"
        said = capsys.readouterr()
        assert said.out == "" and (said.err.count("\n") == 1 and "--prompt" in said.err) == is_terminal


def test_sampling_options(converted):
    """With the likeliest token only, sampling is greedy."""
    arguments = ["generate", converted, "--prompt", "def read_lines(path):\n", "--max-new-tokens", 16]
    greedy = run(*arguments, "--greedy")[1]
    assert run(*arguments, "--top-k", 1, "--temperature", 5)[1] == greedy
    assert run(*arguments, "--top-p", 0.001, "--temperature", 5)[1] == greedy
    assert run(*arguments, "--temperature", 5)[1] != greedy
    for option in ("--top-k", "--top-p"):
        code, _, error = run(*arguments, "--greedy", option, 1)
        assert code == 2 and f"--greedy and {option} cannot be combined" in error
    assert run(*arguments, "--top-p", 1.5)[0] == run(*arguments, "--top-k", 0)[0] == 2


def test_stop_texts_end_the_reply(converted):
    arguments = ["generate", converted, "--prompt", "def read_lines(path):\n", "--max-new-tokens", 32, "--greedy"]
    text = run(*arguments)[1]
    stop = text[4:8]
    code, shorter, _ = run(*arguments, "--stop", "no such text", "--stop", stop)
    assert code == 0 and stop in shorter and text.startswith(shorter[:-1]) and len(shorter) < len(text)
    assert shorter.rstrip("\n").find(stop) + len(stop) >= len(shorter.rstrip("\n")) - 8  # a token may go on after it
    code, message, _ = run("chat", converted, "--message", "import os", *arguments[4:], "--stop", stop, "--json")
    assert code == 0 and json.loads(message)["message"]["role"] == "assistant"
    assert run(*arguments, "--stop", "")[0] == 2


@pytest.fixture
def short(converted, tmp_path):
    """A model that reads at most 32 tokens."""
    folder = shutil.copytree(converted, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    return folder


def test_the_models_maximum_length(short):
    """A longer prompt is refused. A reply ends at the maximum, with a note."""
    code, output, error = run("generate", short, "--prompt", "x = 1\n" * 40)
    assert (code, output) == (1, "") and "at most 32. Shorten the prompt." in error
    arguments = ["generate", short, "--prompt", "import", "--greedy", "--json", "--max-new-tokens"]
    code, output, error = run(*arguments, 100)
    answer = json.loads(output)
    assert code == 0 and answer["prompt_tokens"] + answer["new_tokens"] == 32
    assert "note: the reply was cut at the model's maximum of 32 tokens, prompt included\n" in error
    assert "note" not in run(*arguments, 4)[2]
    code, output, error = run("chat", short, "--message", "x = 1\n" * 40)
    assert (code, output) == (1, "") and "at most 32. Shorten the message, or start over with /clear." in error


def test_only_a_complete_plt_is_run(converted, tmp_path):
    """Missing weights must not be replaced by random ones."""
    dense, broken = tmp_path / "dense", tmp_path / "broken"
    assert run("convert", converted, dense, "--to", "dense")[0] == 0
    shutil.copytree(converted, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.self_attn.plt_gate.bias"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "empty").mkdir()
    commands = (["generate", "--prompt", "x"], ["chat", "--message", "x"])
    for command, *rest in commands:
        for folder, match in (
            (dense, "not a PLT"),
            (broken, "missing_keys"),
            (tmp_path / "empty", "config.json is missing"),
            (tmp_path / "x", "no folder"),
        ):
            code, output, error = run(command, folder, *rest)
            assert (code, output) == (1, "") and match in error, (command, folder)
    assert "not a PLT" in run("info", dense)[2]


def test_fill_in_the_middle(converted):
    code, output, _ = run(
        "generate",
        converted,
        "--prompt",
        "def f(a):\n",
        "--suffix",
        "\n    return b\n",
        "--max-new-tokens",
        4,
        "--json",
    )
    assert code == 0 and json.loads(output)["prompt_tokens"] > 10


def test_chat_with_one_message(converted):
    arguments = ["chat", converted, "--message", "import os", "--max-new-tokens", 8, "--greedy"]
    code, output, _ = run(*arguments)
    code_json, document, _ = run(*arguments, "--json")
    assert code == code_json == 0
    message = json.loads(document)["message"]
    assert message["role"] == "assistant"
    assert message["content"].strip() in output
    assert run("chat", converted, "--json")[0] == 2
    assert "chat template" in run("chat", SMALL, "--message", "x")[2]


def test_chat_of_several_turns(converted):
    lines = "import os\n/loops 3\nimport sys\n/help\n/system Be brief.\n\nimport re\n/lops 3\n/exit\n"
    code, _, error = run("chat", converted, "--max-new-tokens", 4, "--greedy", input=lines)
    assert code == 0
    assert "3 loops from now on" in error and "/system TEXT" in error
    assert error.count("new tokens in") == 3
    assert error.count("There is no command /lops. The commands are:\n/loops N") == 1


# -- the conversation --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_and_tokenizer(converted):
    from iquest_plt.conversion.loading import load_model

    return load_model(str(converted), device="cpu")


def test_a_turn_processes_only_new_tokens_and_gives_the_same_reply(model_and_tokenizer, monkeypatch):
    """Compares with conversations that process everything again in each turn."""
    model, tokenizer = model_and_tokenizer
    options = {"do_sample": False, "max_new_tokens": 12}
    read = []
    forward = type(model.model).forward

    def counted(self, input_ids=None, **kwargs):
        read.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", counted)
    kept, fresh = Conversation(model, tokenizer, **options), Conversation(model, tokenizer, **options)
    for question in ("import os", "def f(x):", "class A:"):
        read.clear()
        cached = kept.cached_tokens
        reply = kept.ask(question)
        prompt = read[0]
        fresh._forget()
        read.clear()
        assert fresh.ask(question) == reply
        assert read[0] - cached - 2 <= prompt <= read[0] - cached + 2  # tokens may merge at the seam
        assert kept.cached_tokens > cached
    assert kept.messages == fresh.messages and len(kept.messages) == 6


def test_commands_of_a_chat(model_and_tokenizer):
    """None of them is sent to the model."""
    conversation = Conversation(*model_and_tokenizer)
    for line in ("/loops", "/loops two", "/loops 0", "/loops 1001", "/loops 1 2"):
        assert chat.run_command(conversation, line) == "/loops needs a number from 1 to 1000, for example /loops 2"
    assert chat.run_command(conversation, "/loops 1000") == "1000 loops from now on"
    assert chat.run_command(conversation, "/system").startswith("/system needs a text")
    assert chat.run_command(conversation, "/help") == chat.HELP
    for line in ("/unknown", "/Help", "/usr/bin/python is what?", "/\x1b[31m"):
        answer = chat.run_command(conversation, line)
        assert answer.startswith("There is no command /") and chat.HELP in answer and "\x1b" not in answer
    assert conversation.messages == []
    chat.run_command(conversation, "/system Be brief.")
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_changing_the_loops_and_starting_over(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    conversation = Conversation(model, tokenizer, "Be brief.", do_sample=False, max_new_tokens=4)
    conversation.ask("import os")
    conversation.set_num_loops(3)
    assert conversation.cached_tokens == 0 and len(conversation.messages) == 3
    conversation.ask("import sys")
    assert conversation.cache.num_loops == 3
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    conversation.clear("Be long.")
    assert conversation.messages[0]["content"] == "Be long."
    with pytest.raises(ValueError, match="num_loops"):
        conversation.set_num_loops(0)


def test_a_template_that_changes_earlier_turns_is_processed_again(model_and_tokenizer):
    """The cache holds the first turn as it was rendered then, so the second turn must not reuse it."""
    model, tokenizer = model_and_tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    counted = "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.chat_template = counted
    options = {"do_sample": False, "max_new_tokens": 6}
    kept, fresh = Conversation(model, tokenizer, **options), Conversation(model, tokenizer, **options)
    for question in ("import os", "def f(x):"):
        fresh._forget()
        assert kept.ask(question) == fresh.ask(question)
        assert kept.ids == fresh.ids


def test_after_an_interrupt_only_the_reply_is_printed(model_and_tokenizer, monkeypatch, capsys):
    model, tokenizer = model_and_tokenizer
    conversation = Conversation(model, tokenizer, do_sample=False, max_new_tokens=4)
    put, calls = TextPrinter.put, []

    def interrupted(self, value):
        calls.append(value)
        put(self, value)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TextPrinter, "put", interrupted)
    console = Console(stderr=True)
    chat.run_line(conversation, "import os", console)
    chat.run_line(conversation, "import sys", console)
    captured = capsys.readouterr()
    assert "interrupted" in captured.err and "system" not in captured.out and "<|im_start|>" not in captured.out


def test_an_error_ends_the_turn_and_not_the_chat(model_and_tokenizer, capsys):
    model, tokenizer = model_and_tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    chat.run_line(Conversation(model, tokenizer), "import os", Console(stderr=True))
    assert "no such role" in capsys.readouterr().err


def test_a_chat_that_is_too_long_is_refused(model_and_tokenizer, monkeypatch, capsys):
    model, tokenizer = model_and_tokenizer
    conversation = Conversation(model, tokenizer, do_sample=False, max_new_tokens=8)
    conversation.ask("import os")
    messages, length = conversation.messages, len(conversation.ids)
    monkeypatch.setattr(model.config, "max_position_embeddings", length + 2)
    chat.run_line(conversation, "import sys", Console(stderr=True, width=400))
    assert "or start over with /clear.; this turn was discarded" in capsys.readouterr().err
    assert conversation.messages == messages
    chat.run_line(conversation, "/clear", Console(stderr=True))
    assert conversation.ask("import sys")["role"] == "assistant"


def test_an_interrupted_turn_is_discarded(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer

    class Interrupt:
        def put(self, value):
            raise KeyboardInterrupt

        def end(self):
            pass

    conversation = Conversation(model, tokenizer, do_sample=False, max_new_tokens=4)
    first = conversation.ask("import os")
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("import sys", Interrupt())
    assert conversation.messages[-1] == first and len(conversation.messages) == 2
    conversation.ask("import sys")
    assert len(conversation.messages) == 4


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("123", 123), ("7B", 7)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5 apples", "-1GB", "0", "GB"])
def test_invalid_sizes_are_refused(text):
    import typer

    with pytest.raises(typer.BadParameter, match="is not a size"):
        parse_size(text)


def test_sizes_for_people():
    assert [human_size(size) for size in (12, 1234, 15_231_499_360)] == ["12 B", "1.23 kB", "15.23 GB"]


def test_the_help_of_mlx_lists_the_launchers_commands():
    from iquest_plt.cli import mlx
    from iquest_plt.serving.mlx import launcher

    assert mlx.COMMANDS == launcher.COMMANDS
