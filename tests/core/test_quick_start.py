# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The model's public quick start runs unchanged, in its old and new form, with the package and as remote code."""

import copy
import inspect
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from paths import ROOT, SMALL
from tiny import tiny_model, tokens
from transformers import AutoTokenizer, BatchEncoding, GenerationMixin, PreTrainedTokenizerFast

import iquest_plt
from iquest_plt.tokenization.chat import TOKENIZER_FILE, tokenizer_config_fields
from iquest_plt.tokenization.tokenization_plt import ChatEncoding, IQuestPLTCoderTokenizer


MESSAGES = [{"role": "user", "content": "Write a quick sort, naïvely."}]

# {dtype} is the argument name in Transformers 4 or 5.
QUICK_START = """
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(model_name{trust})
model = AutoModelForCausalLM.from_pretrained(model_name, {dtype}="auto"{trust})

messages = [{{"role": "user", "content": "Write a quick sort, naïvely."}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_tensors="pt"
).to(model.device)
outputs = model.generate(inputs, max_new_tokens=6, do_sample=True, temperature=0.6, top_p=0.95, top_k=20)
print(tokenizer.decode(outputs[0][inputs.shape[-1]:], skip_special_tokens=True))

outputs = model.generate(**inputs, max_new_tokens=6)
print(tokenizer.decode(outputs[0][inputs["input_ids"].shape[-1]:], skip_special_tokens=True))
"""
CHECK = """
import torch
assert model.dtype == torch.bfloat16
assert outputs.shape[0] == 1 and inputs.shape[1] < outputs.shape[1] <= inputs.shape[1] + 6
assert type(tokenizer).__name__ == "IQuestPLTCoderTokenizer"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small checkpoint as a chat model, with a template and the tokenizer class and its code."""
    if not (SMALL / "model.safetensors").exists():
        pytest.skip("no shipped checkpoint")
    folder = tmp_path_factory.mktemp("models") / "small-chat"
    shutil.copytree(SMALL, folder, ignore=shutil.ignore_patterns("*.png", "golden*", "*_log.json", "*manifest*"))
    shutil.copy(ROOT / "chat_template.jinja", folder)
    (folder / TOKENIZER_FILE).parent.mkdir()
    shutil.copy(ROOT / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tokenizer_config_fields()))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def run_python(code, *args, cwd):
    """Runs `code` in a separate interpreter without an input for prompts."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


# -- the quick start -------------------------------------------------------------------------------------------------


def quick_starts(trust):
    return "".join(QUICK_START.format(dtype=dtype, trust=trust) + CHECK for dtype in ("torch_dtype", "dtype"))


def test_with_the_package(folder, tmp_path):
    code = "import sys; model_name = sys.argv[1]; import iquest_plt" + quick_starts(trust="")
    code += "assert type(tokenizer).__module__ == 'iquest_plt.tokenization.tokenization_plt'"
    assert "trust_remote_code" not in run_python(code, folder, cwd=tmp_path), "nobody is asked"


def test_without_the_package(folder, tokenizer, tmp_path):
    """Runs as remote code. A saved tokenizer loads as remote code too, or with a library class without remote code."""
    code = "import sys; model_name, saved = sys.argv[1:]; sys.modules['iquest_plt'] = None"
    code += quick_starts(trust=", trust_remote_code=True")
    code += """if True:
        print(inputs.input_ids.tolist())
        tokenizer.save_pretrained(saved)
        again = AutoTokenizer.from_pretrained(saved, trust_remote_code=True)
        assert type(again).__module__.startswith("transformers_modules."), type(again)
        assert again.apply_chat_template(messages, return_tensors="pt").shape[0] == 1
        from transformers import PreTrainedTokenizerFast
        for path in (model_name, saved):
            assert PreTrainedTokenizerFast.from_pretrained(path)("def f").input_ids == tokenizer("def f").input_ids
            try:
                AutoTokenizer.from_pretrained(path)
            except ValueError as error:
                assert "trust_remote_code=True" in str(error)
            else:
                raise AssertionError("code of the checkpoint must not run unasked")
    """
    saved = tmp_path / "saved"
    ids = next(line for line in run_python(code, folder, saved, cwd=tmp_path).splitlines() if line.startswith("[["))
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")
    assert json.loads(ids) == inputs["input_ids"].tolist()
    assert type(AutoTokenizer.from_pretrained(saved)) is IQuestPLTCoderTokenizer


# -- ways to load the tokenizer --------------------------------------------------------------------------------------


def test_package_class_without_trust(folder, tokenizer, tmp_path):
    assert type(tokenizer) is IQuestPLTCoderTokenizer is iquest_plt.IQuestPLTCoderTokenizer
    plain = AutoTokenizer.from_pretrained(SMALL)
    assert type(plain) is PreTrainedTokenizerFast
    text = "def f(x):\n    return 'é'<|im_end|>"
    assert tokenizer(text).input_ids == plain(text).input_ids

    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenization_plt.py").read_text() == (ROOT / TOKENIZER_FILE).read_text()
    assert (tmp_path / "chat_template.jinja").read_text() == (ROOT / "chat_template.jinja").read_text()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is IQuestPLTCoderTokenizer
    assert again.response_template == tokenizer.response_template is not None
    assert again(text).input_ids == tokenizer(text).input_ids


# -- encoding of chats -----------------------------------------------------------------------------------------------


def test_chat_encoding(tokenizer):
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    ids = tokenizer(text).input_ids
    assert isinstance(text, str)
    inputs = tokenizer.apply_chat_template(MESSAGES, return_tensors="pt")
    assert isinstance(inputs, BatchEncoding) and inputs.to("cpu") is inputs and inputs.device.type == "cpu"
    assert inputs.shape == (1, len(ids)) == inputs.size() and inputs.size(-1) == len(inputs[0]) == len(ids)
    assert inputs[0].tolist() == inputs[:, 0:][0].tolist() == inputs["input_ids"].tolist()[0] == ids
    assert tokenizer.decode(inputs[0]) == text
    assert set(inputs) == {"input_ids", "attention_mask"} == {**inputs}.keys()
    assert inputs.char_to_token(0, len(text) - 1) == len(ids) - 1
    for twin in (copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs))):
        assert type(twin) is ChatEncoding and twin.shape == inputs.shape
    assert not hasattr(inputs, "no_such_field")


def test_other_forms_equal_the_library_s(tokenizer):
    assert torch.is_tensor(tokenizer.apply_chat_template(MESSAGES, return_tensors="pt", return_dict=False))
    assert type(tokenizer.apply_chat_template(MESSAGES)) is BatchEncoding
    assert type(tokenizer("a", return_tensors="pt")) is BatchEncoding
    assert isinstance(tokenizer.apply_chat_template(MESSAGES, return_dict=False), list)
    assert tokenizer.apply_chat_template(MESSAGES, return_tensors="np").shape[0] == 1
    ours, theirs = (kind.apply_chat_template for kind in (IQuestPLTCoderTokenizer, PreTrainedTokenizerFast))
    assert inspect.signature(ours) == inspect.signature(theirs) and ours.__doc__ == theirs.__doc__


def test_batch_of_chats(tokenizer):
    chats = [MESSAGES, [{"role": "user", "content": "Hi"}]]
    inputs = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt")
    assert inputs.shape[0] == 2 and inputs.attention_mask.sum(-1).unique().numel() == 2


# -- generate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def padded():
    """A left-padded batch whose mask affects the output."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    return BatchEncoding({"input_ids": tokens(2, 9), "attention_mask": mask})


def test_generate_takes_the_tokenizer_output(model, padded):
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = model.generate(**padded, **options)
    assert not torch.equal(model.generate(padded["input_ids"], **options), expected)
    for form in (padded, dict(padded), ChatEncoding(padded)):
        assert torch.equal(model.generate(form, **options), expected)
        assert torch.equal(model.generate(inputs=form, **options), expected)
        assert torch.equal(model.generate(input_ids=form, **options), expected)
    assert set(padded) == {"input_ids", "attention_mask"}, "the caller's dict must not change"
    ones = torch.ones_like(padded["attention_mask"])
    without_mask = model.generate(padded["input_ids"], attention_mask=ones, **options)
    assert torch.equal(model.generate(padded, attention_mask=ones, **options), without_mask)
    config = copy.deepcopy(model.generation_config)
    config.max_new_tokens = 3
    assert torch.equal(model.generate(padded, config), expected[:, : 9 + 3])
    embeds = {"inputs_embeds": model.get_input_embeddings()(padded["input_ids"]), **padded}
    del embeds["input_ids"]
    assert torch.equal(model.generate(embeds, **options), expected[:, 9:])


def test_generate_otherwise_equals_the_library_s(model, padded):
    ours, theirs = (kind.generate for kind in (type(model), GenerationMixin))
    assert inspect.signature(ours) == inspect.signature(theirs) and ours.__doc__ == theirs.__doc__
    assert not model.generate(padded, max_new_tokens=1).requires_grad
    with pytest.raises(ValueError, match="input_ids"):
        model.generate(padded, input_ids=padded["input_ids"], max_new_tokens=1)
    with pytest.raises(ValueError, match="return_tensors"):
        model.generate({"input_ids": [[1, 2, 3]]}, max_new_tokens=1)
