# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters, several in one batch: vLLM chooses the tokens of PEFT on the Transformers model."""

import copy
from itertools import cycle

import pytest
import torch
from engines import Judge, count_kinds, engine, generate, save_model, some_prompts
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CompressedTensorsConfig
from vllm.lora.request import LoRARequest

from iquest_plt import IQuestPLTCoderForCausalLM
from iquest_plt.conversion.convert import convert
from iquest_plt.serving.vllm import model
from iquest_plt.serving.vllm.schedule import TAIL


PROMPTS = some_prompts(16, 700)
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
ADAPTERS = {"attention": (4, ATTENTION), "mlp": (8, MLP), "some of both": (2, ["q_proj", "o_proj", "up_proj"])}
LORA = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 8}
MODELS = {"2-loops-gate-hidden": (2, True), "3-loops-gate-query": (3, False)}


def save_adapter(folder, name: str, model, **fields) -> str:
    """Saves an adapter with random weights, large enough to change most tokens."""
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**fields))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder / name)
    return str(folder / name)


class Adapted:
    """A model, its adapters, and the judges of both. Prompts take turns: no adapter, then one after the other."""

    def __init__(self, folder, path: str, **fields):
        self.path, self.requests = path, [None]
        self.judges = [Judge(path, **fields)]
        for index, (name, (rank, targets)) in enumerate(ADAPTERS.items()):
            adapter = save_adapter(
                folder, name, self.judges[0].model, r=rank, lora_alpha=2 * rank, target_modules=targets
            )
            self.requests.append(LoRARequest(name, index + 1, adapter))
            self.judges.append(Judge(path, **fields))
            self.judges[-1].model = PeftModel.from_pretrained(self.judges[-1].model, adapter).eval()

    def generate(self, llm, prompts, **options) -> list:
        turns = [request for request, _ in zip(cycle(self.requests), prompts, strict=False)]
        return generate(llm, prompts, adapters=turns, **options)

    def check(self, prompts, outputs) -> None:
        for turn, judge in enumerate(self.judges):
            judge.check(prompts[turn :: len(self.judges)], outputs[turn :: len(self.judges)])


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def adapted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    return Adapted(folder, save_model(folder, *request.param))


def test_together(adapted, monkeypatch):
    """With few tokens per step, batches have decoding requests and prompts, some with and some without adapters."""
    kinds = count_kinds(monkeypatch)
    with engine(adapted.path, max_num_batched_tokens=96, **LORA) as llm:
        outputs = adapted.generate(llm, PROMPTS)
    adapted.check(PROMPTS, outputs)
    assert min(kinds[True, True], kinds[True, False]) > 3
    # No adapter gives the tokens of another, or of none.
    for judge in adapted.judges:
        others = [output for turn, output in enumerate(outputs) if adapted.judges[turn % 4] is not judge]
        prompts = [prompt for turn, prompt in enumerate(PROMPTS) if adapted.judges[turn % 4] is not judge]
        assert sum(judge.agrees(prompts, others)) < len(prompts) / 4


def test_in_sequence(adapted, monkeypatch):
    split = model.split

    def never_together(*args):
        together, rest = split(*args)
        return (together, rest) if rest is not None else (None, together)

    monkeypatch.setattr(model, "split", never_together)
    with engine(adapted.path, **LORA) as llm:
        adapted.check(PROMPTS, adapted.generate(llm, PROMPTS, every=0))


@pytest.mark.slow
def test_two_ranks(adapted):
    with engine(adapted.path, tensor_parallel_size=2, max_num_batched_tokens=256, **LORA) as llm:
        adapted.check(PROMPTS, adapted.generate(llm, PROMPTS))


def test_ends_of_prompts(adapted):
    with engine(adapted.path, additional_config={TAIL: True}, max_num_batched_tokens=512, **LORA) as llm:
        adapted.check(PROMPTS, adapted.generate(llm, PROMPTS))


def test_a_common_prefix_of_prompts_with_different_adapters(adapted):
    """Their cache blocks differ. Two of the three adapters fit at a time."""
    prompts = [list(range(80))] * 8
    with engine(adapted.path, enable_prefix_caching=True, **LORA | {"max_loras": 2}) as llm:
        for _ in range(2):
            outputs = adapted.generate(llm, prompts)
            adapted.check(prompts, outputs)
        assert all(output.num_cached_tokens for output in outputs)


def test_on_quantized_weights(tmp_path):
    convert(save_model(tmp_path, 2, True), tmp_path / "int8", quantize="int8")
    config = CompressedTensorsConfig(dequantize=True)
    adapted = Adapted(tmp_path, str(tmp_path / "int8"), quantization_config=config)
    with engine(adapted.path, **LORA) as llm:
        adapted.check(PROMPTS, adapted.generate(llm, PROMPTS))


def test_adapters_of_gates_and_the_output_layer_are_rejected(tmp_path):
    """vLLM adds low-rank products to linear layers. A trained gate would replace the weights of some rows."""
    path = save_model(tmp_path, 2, True)
    base = IQuestPLTCoderForCausalLM.from_pretrained(path)
    fields = {"r": 4, "target_modules": ATTENTION}
    replaced = save_adapter(tmp_path, "replaced", base, modules_to_save=["plt_gate"], **fields)
    low_rank = save_adapter(tmp_path, "low-rank", base, **fields)
    weights = load_file(f"{low_rank}/adapter_model.safetensors")
    renamed = {key.replace("o_proj", "plt_gate"): tensor for key, tensor in weights.items()}
    save_file(renamed, f"{low_rank}/adapter_model.safetensors")
    head = save_adapter(tmp_path, "head", base, r=4, target_modules=["lm_head"])
    with engine(path, **LORA) as llm:
        for adapter, name in ((replaced, "plt_gate"), (low_rank, "plt_gate"), (head, "lm_head")):
            with pytest.raises(ValueError, match=name):
                llm.add_lora(LoRARequest("adapter", 1, adapter))
