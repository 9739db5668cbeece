# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Trainers of Transformers, PEFT and TRL use the model's own loss and number of loops."""

import contextlib
import math
import subprocess
import sys

import pytest
import torch
from tiny import llama_of, tiny_model, tokens
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments


pytest.importorskip("peft", reason="adapters need it: pip install '.[training]' in a checkout of iquest-plt")
pytest.importorskip("trl", reason="preference training needs it: pip install '.[training]' in a checkout of iquest-plt")

from datasets import Dataset
from finetuning import one_thread, write_model  # noqa: F401 (a fixture for all)
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from iquest_plt.training.elastic import ElasticTrainer


IDS = tokens(2, 17)
ROWS = [{"input_ids": row, "labels": row} for row in tokens(8, 17).tolist()]
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}


def make_trainer(model, folder, trainer_class=Trainer, own=None, **arguments):
    arguments = TrainingArguments(output_dir=str(folder), **{**QUIET, "max_steps": 3, **arguments})
    return trainer_class(model=model, args=arguments, train_dataset=ROWS, eval_dataset=ROWS[:4], **(own or {}))


@contextlib.contextmanager
def one_process():
    """A process group of one process, for DDP."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["model", "twin", "Llama", "PEFT", "DDP", "elastic"])
def test_smoothed_labels_are_shifted(kind, training, tmp_path):
    """Trainer decides by the class name whether to shift labels. Unshifted, the model would learn to copy its input."""
    model = tiny_model()
    labels = IDS.clone()
    labels[0, :5] = -100
    if kind == "twin":
        model = model.with_num_loops(3)
    elif kind == "Llama":
        model = llama_of(model)
    elif kind == "PEFT":
        model = get_peft_model(model, LORA)
    own = {"loop_counts": [2]} if kind == "elastic" else {}
    trainer_class = ElasticTrainer if kind == "elastic" else Trainer
    trainer = make_trainer(model, tmp_path, trainer_class, own, label_smoothing_factor=1e-9)
    model.train(training)
    expected = model(IDS, labels=labels).loss
    with one_process() if kind == "DDP" else contextlib.nullcontext():
        called = DistributedDataParallel(model) if kind == "DDP" else model
        loss = trainer.compute_loss(called, {"input_ids": IDS, "labels": labels})
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"neftune_noise_alpha": 5.0},
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"average_tokens_across_devices": False},
    ],
    ids=str,
)
def test_one_loop_trains_as_llama(arguments, tmp_path):
    """Losses, gradient norms and evaluation are bit-identical."""
    model = tiny_model(plt_num_loops=1)
    histories = []
    for each in (model, llama_of(model)):
        torch.manual_seed(0)
        trainer = make_trainer(each, tmp_path, **arguments)
        trainer.train()
        loss, prediction = trainer.evaluate()["eval_loss"], trainer.predict(ROWS[:4]).predictions
        logged = [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
        histories.append((logged, loss, prediction.shape))
    assert len(histories[0][0]) == 3
    assert histories[0] == histories[1]


@pytest.mark.parametrize("trainer_class", [Trainer, SFTTrainer])
def test_a_model_of_other_loops_trains_with_these_loops(trainer_class, tmp_path):
    """TRL calls the decoder directly, without the head."""
    losses = []
    for model in (tiny_model(plt_num_loops=3), tiny_model().with_num_loops(3)):
        if trainer_class is SFTTrainer:
            tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / f"tokenizer{len(losses)}"))
            arguments = SFTConfig(str(tmp_path), max_steps=2, bf16=False, **QUIET)
            rows = Dataset.from_list(ROWS)
            trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
        else:
            trainer = make_trainer(model, tmp_path)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model", plt_num_loops=2)


def policy(folder, way):
    if way == "loaded so":
        return AutoModelForCausalLM.from_pretrained(folder, plt_num_loops=3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if way == "with_num_loops":
        return model.with_num_loops(3)
    model.config.plt_num_loops = 3
    return model


def first_log(trainer_class, config_class, model, folder, rows, peft_config, **options):
    arguments = {"max_steps": 1, "per_device_train_batch_size": 2, "bf16": False, "gradient_checkpointing": False}
    own = {name: options.pop(name) for name in ("reward_funcs",) if name in options}
    trainer = trainer_class(
        model=model,
        args=config_class(str(folder / "run"), **QUIET, **arguments, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=peft_config,
        **own,
    )
    trainer.train()
    assert trainer.ref_model is None or trainer.ref_model.config.plt_num_loops == 3
    return trainer.state.log_history[0]


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["whole", "PEFT"])
@pytest.mark.parametrize("way", ["loaded so", "with_num_loops", "config"])
def test_the_reference_has_the_policys_loops(way, peft_config, model_folder):
    """TRL loads the reference from the policy's path, whose configuration has two loops. At first both must agree."""
    pairs = [{"prompt": "def f", "chosen": "(x): return x", "rejected": "= 1"}] * 2
    log = first_log(DPOTrainer, DPOConfig, policy(model_folder, way), model_folder, pairs, peft_config)
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-6)

    answers = [
        {"prompt": "def f", "completion": "(x): return x", "label": True},
        {"prompt": "def f", "completion": "= 1", "label": False},
    ]
    log = first_log(KTOTrainer, KTOConfig, policy(model_folder, way), model_folder, answers, peft_config)
    assert log["loss"] == pytest.approx(0.5, abs=1e-6)

    online = {"beta": 0.1, "num_generations": 2, "max_completion_length": 6}
    online["reward_funcs"] = lambda completions, **kwargs: [float(len(text)) for text in completions]
    for classes in ((GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)):
        model = policy(model_folder, way)
        log = first_log(*classes, model, model_folder, [{"prompt": "def f"}] * 2, peft_config, **online)
        assert log["kl"] == pytest.approx(0, abs=1e-6)


def test_an_adapters_base_is_loaded_with_other_loops(model_folder, tmp_path):
    """An adapter stores only the path of its base model."""
    model = get_peft_model(policy(model_folder, "loaded so"), LORA)
    model.save_pretrained(tmp_path)
    for options, num_loops in (({}, 2), ({"plt_num_loops": 3}, 3)):
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path, **options)
        assert loaded.config.plt_num_loops == num_loops
    assert torch.equal(loaded(IDS).logits, model.eval()(IDS).logits)


REMOTE = """
import sys, torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, plt_num_loops=3, trust_remote_code=True)
again = AutoModelForCausalLM.from_pretrained(model.config._name_or_path, trust_remote_code=True)
assert again.config.plt_num_loops == 3 and "iquest_plt" not in sys.modules
arguments = TrainingArguments(out, label_smoothing_factor=1e-9, use_cpu=True, report_to="none")
ids = torch.arange(40).view(2, 20)
loss = Trainer(model=model, args=arguments).compute_loss(model, {"input_ids": ids, "labels": ids})
torch.testing.assert_close(loss, model(ids, labels=ids).loss, rtol=1e-5, atol=1e-6)
list(AutoModelForCausalLM._model_mapping.items())
assert type(AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)) is type(model)
"""


def test_trainers_work_with_remote_code(model_folder, tmp_path):
    command = [sys.executable, "-c", REMOTE, str(model_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
