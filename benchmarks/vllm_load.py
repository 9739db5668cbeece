# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Does vLLM with the plugin give many simultaneous clients the same answers as one? Starts `iquest-plt serve`, asks each
question alone, and then with all clients at once, where some disconnect midway. Compares every answer and watches the
server's memory. With `--lora`, each question goes to the base model or to one of three LoRA adapters, and the answers
given alone are checked with PEFT on the Transformers model.

    python -m iquest_plt.benchmarks.vllm_load --clients 64 --minutes 5
    python -m iquest_plt.benchmarks.vllm_load --clients 64 --minutes 5 --lora --questions 32
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
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import openai
import psutil
import torch

from ..conversion.tokenizer import load_tokenizer
from ..modeling_plt import IQuestPLTCoderForCausalLM
from .common import parse, report


SMALL = Path(__file__).parents[1] / "checkpoints" / "small"
# Kernels round differently in other batches. An answer may diverge where the two likeliest tokens were this close (in
# nats) when asked alone; at most one answer in a hundred.
TIE, SHARE_OF_TIES = 1e-3, 0.01
HANG_UP = 8  # one in this many questions is abandoned midway
LONGEST, ANSWER = 1200, 64
START_SECONDS = 600
RANK = 8
# The layers that each adapter changes. If one were named "mlp", PEFT would save the others without that module.
ADAPTERS = {
    "lora-attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "lora-mlp": ["gate_proj", "up_proj", "down_proj"],
    "lora-both": ["q_proj", "o_proj", "up_proj"],
}


@contextlib.contextmanager
def server(path: Path, loops: int, log: Path, adapters: Path | None = None):
    """
    Runs `iquest-plt serve` on a free port; yields its address and its process. `adapters` is a folder made by
    `make_adapters`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "iquest_plt.cli", "serve", str(path), "--port", str(port), "--dtype", "float32"]
    command += ["--num-loops", str(loops), "--", "--enforce-eager", "--max-num-batched-tokens", "1024"]
    command += ["--num-gpu-blocks-override", "512"]  # few, so that all are soon in use and memory is steady
    if adapters is not None:
        command += ["--enable-lora", "--max-loras", str(len(ADAPTERS)), "--max-lora-rank", str(RANK)]
        command += ["--lora-modules", *(f"{name}={adapters / name}" for name in ADAPTERS)]
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


def make_adapters(path: Path, folder: Path):
    """Saves adapters with random weights, large enough to change answers; returns the PEFT model with all of them."""
    from peft import LoraConfig, PeftModel

    model = IQuestPLTCoderForCausalLM.from_pretrained(path, dtype=torch.float32)
    first, *others = (
        (name, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets)) for name, targets in ADAPTERS.items()
    )
    adapted = PeftModel(model, first[1], adapter_name=first[0])
    for name, config in others:
        adapted.add_adapter(name, config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    return adapted.eval()


@torch.no_grad()
def is_right(adapted, name: str, prompt: list[int], answer: list[int], num_loops: int) -> bool:
    """Tests whether each token of an answer is PEFT's greedy choice after the same text, except for ties."""
    if name in ADAPTERS:
        adapted.set_adapter(name)
    with contextlib.nullcontext() if name in ADAPTERS else adapted.disable_adapter():
        output = adapted(torch.tensor([prompt + answer[:-1]]), num_loops=num_loops, use_cache=False)
    logits = output.logits[0, len(prompt) - 1 :]
    return bool((logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0] < TIE).all())


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


async def load(
    url: str, names: list[str], prompts: list[list[int]], arguments, memory, check=None
) -> tuple[Counter, list[int], float]:
    """
    Runs the load; returns counts of the outcomes, the server's memory every second, and the seconds it took. `names`
    are the models to ask. `check(name, prompt, answer)` tells whether an answer given alone is right.
    """
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    alone = {(name, i): await ask(client, name, prompt) for i, prompt in enumerate(prompts) for name in names}
    counts = Counter()
    if check is not None:
        counts["wrong alone"] = sum(not check(name, prompts[i], answer) for (name, i), (answer, _) in alone.items())
    counts["distinct"] = sum(
        len({tuple(alone[name, i][0]) for name in names}) == len(names) for i in range(len(prompts))
    )
    sizes, start = [], time.monotonic()
    end = start + 60 * arguments.minutes

    async def one_client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            name, index = draw.choice(names), draw.randrange(len(prompts))
            try:
                if draw.randrange(HANG_UP) == 0:
                    await hang_up(client, name, prompts[index])
                    counts["left"] += 1
                else:
                    tokens, _ = await ask(client, name, prompts[index])
                    counts[judge(tokens, alone[name, index])] += 1
                    counts["answers of", name] += 1
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
    for (name, i), first in list(alone.items())[:8]:
        again, _ = await ask(client, name, prompts[i])
        counts[judge(again, first)] += 1
    await client.close()
    return counts, sizes, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL, help="model folder with a tokenizer")
    parser.add_argument("--num-loops", type=int, default=2)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--questions", type=int, default=64, help="number of different prompts")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--lora", action="store_true", help="ask three LoRA adapters, too")
    parser.add_argument("--log", type=Path, default=Path("vllm-server.log"), help="file for the server's output")
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/DATE-NAME.md and .json")
    arguments = parse(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # also stops the server
    prompts = questions(arguments.model, arguments.questions)
    names, adapted, adapters = [str(arguments.model)], None, None
    with contextlib.ExitStack() as stack:
        if arguments.lora:
            adapters = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            adapted = make_adapters(arguments.model, adapters)
            names += ADAPTERS
        url, process = stack.enter_context(server(arguments.model, arguments.num_loops, arguments.log, adapters))

        def memory() -> int:
            family = [process, *process.children(recursive=True)]
            return sum(member.memory_info().rss for member in family if member.is_running())

        def check(name: str, prompt: list[int], answer: list[int]) -> bool:
            return is_right(adapted, name, prompt, answer, arguments.num_loops)

        work = load(url, names, prompts, arguments, memory, check if arguments.lora else None)
        counts, sizes, seconds = asyncio.run(work)
    # One-time allocations, such as buffers for batches of every size, are complete after a third of the time.
    third = max(len(sizes) // 3, 1)
    first, early, late = max(sizes[:third]), max(sizes[third : 2 * third]), max(sizes[-third:])
    answers = counts["equal"] + counts["tie"] + counts["wrong"]
    row = [answers, counts["left"], counts["error"], counts["wrong"], counts["tie"]]
    row += [round(counts["tokens"] / seconds), *(round(size / 2**20) for size in (first, early, late))]
    columns = ["answers", "left midway", "errors", "wrong", "ties", "tokens per s"]
    columns += ["MiB, first third", "MiB, second third", "MiB, last third"]
    arguments.model, arguments.log = str(arguments.model), str(arguments.log)
    data = {"results": dict(zip(columns, row, strict=True)), "memory_growth": round(late / early - 1, 4)}
    if arguments.lora:
        data["answers_by_model"] = {name: counts["answers of", name] for name in [names[0], *ADAPTERS]}
        data["alone"] = {"answers": len(names) * len(prompts), "wrong by PEFT": counts["wrong alone"]}
        data["prompts_with_four_different_answers"] = counts["distinct"]
    data["memory_mib"] = [round(size / 2**20) for size in sizes[::10]]
    report("Does vLLM serve many clients as it serves one?", "vllm_load", arguments, columns, [row], data)
    failed = counts["error"] or counts["wrong"] or counts["wrong alone"]
    failed = failed or counts["distinct"] < 0.9 * len(prompts)  # else adapters could be confused unnoticed
    if failed or counts["tie"] > SHARE_OF_TIES * answers or late > 1.02 * early:
        sys.exit(1)


if __name__ == "__main__":
    main()
