# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
How fast is llama.cpp on the Llama of the same shape? Times decode steps with random weights, and steps of 2 and 4
tokens, which read the weights once. PLT is not implemented in llama.cpp, so this is the speed without loops.

    pip install llama-cpp-python gguf
    python -m iquest_plt.benchmarks.llama_cpp --hidden 2048 --layers 8
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from llama_cpp import Llama, llama_print_system_info

from .common import add_shape_arguments, parse, plt_config, report


KINDS = {"int8": gguf.GGMLQuantizationType.Q8_0, "int4": gguf.GGMLQuantizationType.Q4_0}
BLOCK = 32  # weights with a common scale, in both kinds
COLUMNS = ["weights", "tokens per step", "ms per step", "over one token"]


def tensors(config) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields the names and shapes (rows, columns) of a Llama's matrices in a GGUF file."""
    hidden, queries = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    for layer in range(config.num_hidden_layers):
        yield f"blk.{layer}.attn_q.weight", (queries, hidden)
        yield f"blk.{layer}.attn_k.weight", (keys, hidden)
        yield f"blk.{layer}.attn_v.weight", (keys, hidden)
        yield f"blk.{layer}.attn_output.weight", (hidden, queries)
        yield f"blk.{layer}.ffn_gate.weight", (config.intermediate_size, hidden)
        yield f"blk.{layer}.ffn_up.weight", (config.intermediate_size, hidden)
        yield f"blk.{layer}.ffn_down.weight", (hidden, config.intermediate_size)


def write_random(path: Path, config, kind: gguf.GGMLQuantizationType) -> None:
    """Writes a Llama with random quantized layers, and embeddings and output layer in 16 bits."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{index}>" for index in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    for name, (rows, columns) in tensors(config):
        size = gguf.GGML_QUANT_SIZES[kind][1]
        blocks = random.integers(0, 256, (rows, columns // BLOCK, size), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)
    for name in ("token_embd.weight", "output.weight"):
        full = random.standard_normal((config.vocab_size, config.hidden_size), dtype=np.float32) / 50
        writer.add_tensor(name, full.astype(np.float16))
    norms = [f"blk.{layer}.{kind}_norm.weight" for layer in range(config.num_hidden_layers) for kind in ("attn", "ffn")]
    for name in (*norms, "output_norm.weight"):
        writer.add_tensor(name, np.ones(config.hidden_size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def step_times(models: dict[str, Llama], prompt: list[int], counts: list[int], rounds: int) -> dict[tuple, list]:
    """Returns the seconds of steps of each number of tokens after a prompt. The runs take turns."""
    times: dict[tuple, list] = {(name, count): [] for name in models for count in counts}
    for model in models.values():
        model.eval(prompt)
    for turn in range(rounds + 1):
        for (name, count), seconds in times.items():
            model = models[name]
            model.n_tokens = len(prompt)  # forgets the steps before
            start = time.perf_counter()
            model.eval(prompt[:count])
            if turn > 0:
                seconds.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=2048)
    parser.add_argument("--prompt", type=int, default=256, help="tokens before the step")
    parser.add_argument("--tokens", type=int, default=30, help="timed steps")
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/DATE-NAME.md and .json")
    arguments = parse(parser)
    config = plt_config(arguments.hidden, arguments.layers)
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for name, kind in KINDS.items():
            path = Path(folder, f"{name}.gguf")
            write_random(path, config, kind)
            threads = dict.fromkeys(("n_threads", "n_threads_batch"), torch.get_num_threads())
            models[name] = Llama(str(path), n_ctx=arguments.prompt + 16, verbose=False, **threads)
        times = step_times(models, list(range(arguments.prompt)), [1, 2, 4], arguments.tokens)
    results = [
        {
            "weights": name,
            "tokens": count,
            "ms_per_step": round(1e3 * statistics.median(seconds), 2),
            "over_one_token": round(statistics.median(seconds) / statistics.median(times[name, 1]), 3),
        }
        for (name, count), seconds in times.items()
    ]
    data = {"system": llama_print_system_info().decode(), "results": results}
    rows = [list(result.values()) for result in results]
    report("How fast is llama.cpp on the Llama of the same shape?", "llama_cpp", arguments, COLUMNS, rows, data)


if __name__ == "__main__":
    main()
