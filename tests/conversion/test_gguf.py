# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`convert` reads a `.gguf` file of Llama's architecture, and refuses others in one line."""

import sys

import numpy as np
import pytest
import torch
from command_line import run
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


gguf = pytest.importorskip("gguf", reason="pip install '.[conversion]' in a checkout of iquest-plt")

HIDDEN, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2
WORDS = ["<|endoftext|>", "<s>", "</s>", *(chr(code) for code in range(97, 123)), "\u0120", "th", "he", "the"]


def write_gguf(path, architecture: str = "llama") -> None:
    """A random model in float32 with a byte-pair tokenizer, as llama.cpp's own tools would write it."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["t h", "h e", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
    generator = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, generator.normal(0, 0.1, shape).astype(np.float32))

    tensor("token_embd.weight", len(WORDS), HIDDEN)
    tensor("output_norm.weight", HIDDEN)
    tensor("output.weight", len(WORDS), HIDDEN)
    head = HIDDEN // HEADS
    for i in range(LAYERS):
        tensor(f"blk.{i}.attn_norm.weight", HIDDEN)
        tensor(f"blk.{i}.ffn_norm.weight", HIDDEN)
        tensor(f"blk.{i}.attn_q.weight", HIDDEN, HIDDEN)
        tensor(f"blk.{i}.attn_k.weight", KV_HEADS * head, HIDDEN)
        tensor(f"blk.{i}.attn_v.weight", KV_HEADS * head, HIDDEN)
        tensor(f"blk.{i}.attn_output.weight", HIDDEN, HIDDEN)
        tensor(f"blk.{i}.ffn_gate.weight", 96, HIDDEN)
        tensor(f"blk.{i}.ffn_up.weight", 96, HIDDEN)
        tensor(f"blk.{i}.ffn_down.weight", HIDDEN, 96)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    code, _, error = run("convert", tmp_path / "model.gguf", tmp_path / "plt", "--num-loops", "2")
    assert code == 0, error
    llama = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    plt = AutoModelForCausalLM.from_pretrained(tmp_path / "plt").eval()
    llama.set_attn_implementation("eager")
    plt.set_attn_implementation("eager")
    ids = torch.randint(len(WORDS), (2, 30))
    with torch.no_grad():
        assert torch.equal(plt(ids, num_loops=1).logits, llama(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plt")
    assert (
        tokenizer("the cat").input_ids
        == AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")("the cat").input_ids
    )
    assert tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False) == "abc"
    assert "model.gguf" in (tmp_path / "plt" / "README.md").read_text()

    assert run("convert", tmp_path / "plt", tmp_path / "dense", "--to", "dense")[0] == 0
    dense = LlamaForCausalLM.from_pretrained(tmp_path / "dense", attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(dense(ids).logits, llama(ids).logits)


def test_what_is_not_a_llama_in_gguf_is_refused_in_one_line(tmp_path, monkeypatch):
    write_gguf(tmp_path / "other.gguf", "qwen2")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(20))
    (tmp_path / "text.gguf").write_text("not a model")
    for name, reason in (
        ("other.gguf", "architecture 'qwen2'"),
        ("damaged.gguf", "damaged.gguf"),
        ("text.gguf", "text.gguf"),
        ("missing.gguf", "no such file"),
    ):
        code, _, error = run("convert", tmp_path / name, tmp_path / "plt")
        assert code == 1 and reason in error and len(error.strip().splitlines()) == 1, error
        assert not (tmp_path / "plt").exists()
    monkeypatch.setitem(sys.modules, "gguf", None)
    write_gguf(tmp_path / "model.gguf")
    code, _, error = run("convert", tmp_path / "model.gguf", tmp_path / "plt")
    assert code == 1 and "pip install gguf" in error
