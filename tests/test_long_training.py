# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Long rows: every kind of rotary scaling under training, and steps whose memory does not run away."""

import json

import pytest
import torch
from test_conversion import ROPES
from tiny import llama_of, tiny_model, tokens


ROPES = {"default": {}} | ROPES
TIME = 150  # beyond what the scaled ones call their original length


def scaled(rope: str) -> dict:
    fields = {"rope_type": rope, "rope_theta": 100.0} | ROPES[rope]
    if rope == "longrope":
        fields["original_max_position_embeddings"] = 64
    return {"rope_parameters": fields, "max_position_embeddings": 64 if rope == "dynamic" else 512}


def gradients(model, ids, **kwargs):
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False, **kwargs).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rope", ROPES)
def test_every_rotary_scaling_trains(rope):
    """One loop as Llama does, to the bit; two loops with checkpointing as without; and scaling has an effect."""
    model = tiny_model(attention="eager", **scaled(rope)).train()
    ids = tokens(1, TIME)
    loss, ours = gradients(model, ids, num_loops=1)
    expected, theirs = gradients(llama_of(model).train(), ids)
    assert loss == expected
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())
    loss, plain = gradients(model, ids)
    model.gradient_checkpointing_enable()
    again, checkpointed = gradients(model, ids)
    assert loss == again and plain.keys() == checkpointed.keys() == dict(model.named_parameters()).keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-7 * gradient.abs().max().item())
    if rope != "default":
        assert gradients(tiny_model(attention="eager", max_position_embeddings=512).train(), ids)[0] != loss


@pytest.mark.slow
def test_a_step_of_32k_tokens_needs_little_memory(tmp_path):
    """
    The script for conversations, a row of 32K tokens, two loops with checkpointing: less memory than the logits alone
    would take, and at most five times what a row of 8K takes.
    """
    pytest.importorskip("trl", reason="the script needs it: pip install 'iquest-plt[training]'")
    from tuning import ROOT, write_model

    from iquest_plt.benchmarks.common import peak_memory
    from iquest_plt.training import sft

    vocabulary, peaks = 65_536, {}
    rope = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096, "rope_theta": 1e4}
    folder = write_model(
        tmp_path / "model",
        vocab_size=vocabulary,
        max_position_embeddings=32_768,
        rope_parameters=rope,
        plt_window_size=[64, 0],
    )
    text = "".join(path.read_text() for path in sorted(ROOT.glob("tests/*.py")))
    for length in (8192, 32_768):
        data = tmp_path / f"{length}.jsonl"
        chat = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text[: 4 * length]}]
        data.write_text(json.dumps({"messages": chat}) + "\n")
        command = f"--model {folder} --data {data} --out {tmp_path / str(length)} --length {length} --steps 1 --batch 1"
        command += " --heldout-share 0 --checkpointing --log-steps 1"
        peaks[length] = peak_memory(lambda command=command: sft.main(command.split()), "cpu")
        log = json.loads((tmp_path / str(length) / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
        assert log[0]["num_tokens"] == length and 0 < log[0]["loss"] < 20
    print(peaks)
    assert peaks[32_768] < 4 * 32_768 * vocabulary
    assert peaks[32_768] < 5 * peaks[8192]
