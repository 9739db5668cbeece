# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Does vLLM with the plugin give many simultaneous clients the same answers as one? Starts `iquest-plt serve`, asks each
question alone, and then with all clients at once, where some disconnect midway. Compares every answer and watches the
server's memory.

    python -m iquest_plt.benchmarks.vllm_load --clients 64 --minutes 5
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections import Counter
from pathlib import Path

import openai
import psutil

from ..conversion.tokenizer import load_tokenizer
from .common import parse, report


SMALL = Path(__file__).parents[1] / "checkpoints" / "small"
# Kernels round differently in other batches. An answer may diverge where the two likeliest tokens were this close (in
# nats) when asked alone; at most one answer in a hundred.
TIE, SHARE_OF_TIES = 1e-3, 0.01
HANG_UP = 8  # one in this many questions is abandoned midway
LONGEST, ANSWER = 1200, 64
START_SECONDS = 600


@contextlib.contextmanager
def server(path: Path, loops: int, log: Path):
    """Runs `iquest-plt serve` on a free port; yields its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "iquest_plt.cli", "serve", str(path), "--port", str(port), "--dtype", "float32"]
    command += ["--num-loops", str(loops), "--", "--enforce-eager", "--max-num-batched-tokens", "1024"]
    command += ["--num-gpu-blocks-override", "512"]  # few, so that all are soon in use and memory is steady
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"The server did not start. See {log}.")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def questions(path: Path, count: int) -> list[list[int]]:
    """Returns prompts of 1 to `LONGEST` tokens, cut from Python's standard library."""
    tokenizer, draw = load_tokenizer(path), random.Random(0)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "\n".join(file.read_text(errors="ignore") for file in draw.sample(files, 12))
    ids = tokenizer(text)["input_ids"]
    lengths = [round(LONGEST ** draw.random()) for _ in range(count)]
    starts = [draw.randrange(len(ids) - length) for length in lengths]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


async def ask(client, model: str, prompt: list[int]) -> tuple[list[str], list[float]]:
    """Returns the answer's tokens, and for each its margin over the second likeliest."""
    answer = await client.completions.create(
        model=model, prompt=prompt, max_tokens=ANSWER, temperature=0, logprobs=2, extra_body={"return_token_ids": True}
    )
    found = answer.choices[0]
    likeliest = [sorted(top.values(), reverse=True) for top in found.logprobs.top_logprobs]
    return found.token_ids, [top[0] - top[1] if len(top) > 1 else 0.0 for top in likeliest]


async def hang_up(client, model: str, prompt: list[int]) -> None:
    """Reads the beginning of an answer and disconnects."""
    stream = await client.completions.create(
        model=model, prompt=prompt, max_tokens=ANSWER, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == 3:
            break
    await stream.close()


def judge(found: list[int], alone: tuple[list[int], list[float]]) -> str:
    """Classifies an answer as `equal`, `tie` or `wrong`."""
    tokens, margins = alone
    if found == tokens:
        return "equal"
    place = next((i for i, pair in enumerate(zip(found, tokens, strict=False)) if pair[0] != pair[1]), None)
    return "tie" if place is not None and margins[place] < TIE else "wrong"


async def load(url: str, model: str, prompts: list[list[int]], arguments, memory) -> tuple[Counter, list[int], float]:
    """Runs the load; returns counts of the outcomes, the server's memory every second, and the seconds it took."""
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    alone = [await ask(client, model, prompt) for prompt in prompts]
    counts, sizes, start = Counter(), [], time.monotonic()
    end = start + 60 * arguments.minutes

    async def one_client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            index = draw.randrange(len(prompts))
            try:
                if draw.randrange(HANG_UP) == 0:
                    await hang_up(client, model, prompts[index])
                    counts["left"] += 1
                else:
                    tokens, _ = await ask(client, model, prompts[index])
                    counts[judge(tokens, alone[index])] += 1
                    counts["tokens"] += len(tokens)
            except openai.OpenAIError as error:
                counts["error"] += 1
                print(f"{type(error).__name__}: {error}", file=sys.stderr)

    async def watch() -> None:
        while True:
            sizes.append(memory())
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*map(one_client, range(arguments.clients)))
    seconds = time.monotonic() - start
    watching.cancel()
    alone_again = [await ask(client, model, prompt) for prompt in prompts[:8]]
    counts.update(judge(again[0], first) for again, first in zip(alone_again, alone, strict=False))
    await client.close()
    return counts, sizes, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL, help="model folder with a tokenizer")
    parser.add_argument("--num-loops", type=int, default=2)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--questions", type=int, default=64, help="number of different prompts")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--log", type=Path, default=Path("vllm-server.log"), help="file for the server's output")
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/DATE-NAME.md and .json")
    arguments = parse(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # also stops the server
    prompts = questions(arguments.model, arguments.questions)
    with server(arguments.model, arguments.num_loops, arguments.log) as (url, process):

        def memory() -> int:
            family = [process, *process.children(recursive=True)]
            return sum(member.memory_info().rss for member in family if member.is_running())

        work = load(url, str(arguments.model), prompts, arguments, memory)
        counts, sizes, seconds = asyncio.run(work)
    # One-time allocations, such as buffers for batches of every size, are complete after a third of the time.
    third = max(len(sizes) // 3, 1)
    early, late = max(sizes[third : 2 * third]), max(sizes[-third:])
    answers = counts["equal"] + counts["tie"] + counts["wrong"]
    row = [answers, counts["left"], counts["error"], counts["wrong"], counts["tie"]]
    row += [round(counts["tokens"] / seconds), round(early / 2**20), round(late / 2**20)]
    columns = [
        "answers",
        "left midway",
        "errors",
        "wrong",
        "ties",
        "tokens per s",
        "MiB, second third",
        "MiB, last third",
    ]
    arguments.model, arguments.log = str(arguments.model), str(arguments.log)
    data = {"results": dict(zip(columns, row, strict=True)), "memory_growth": round(late / early - 1, 4)}
    data["memory_mib"] = [round(size / 2**20) for size in sizes[::10]]
    report("Does vLLM serve many clients as it serves one?", "vllm_load", arguments, columns, [row], data)
    if counts["error"] or counts["wrong"] or counts["tie"] > SHARE_OF_TIES * answers or late > 1.02 * early:
        sys.exit(1)


if __name__ == "__main__":
    main()
