# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled training without Trainer: same losses as a plain loop, shared graphs, and folders that `export` reads."""

import dataclasses
import lzma
import shutil

import pytest
import torch
from test_training import TINY, small
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from iquest_plt import IQuestPLTCoderForCausalLM
from iquest_plt.training import compiled, export, recipe
from iquest_plt.training.optimizer import make_optimizer
from iquest_plt.training.run_files import read_json


CPU = torch.device("cpu")
RECIPE = dataclasses.replace(TINY, row=128, early_row=128)


class Calls(TorchDispatchMode):
    """Collects the names of the operations that are called, also in the backward pass."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def prepared(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return folder, *small.prepare(folder, RECIPE, library)


def model_of(tokenizer, **fields):
    return small.build_model(dataclasses.replace(RECIPE, model=RECIPE.model | fields), tokenizer, attention="sdpa")


def test_losses_of_a_plain_loop(prepared):
    """bf16 weights with a float32 copy follow the same losses as float32 training."""
    _, tokenizer, stream, _, _ = prepared
    model = model_of(tokenizer)
    training = compiled.CompiledTraining(model, RECIPE, stream, CPU, compiled=False)
    history = training.train()
    optimizer = make_optimizer(model, RECIPE.muon_lr, RECIPE.adamw_lr, RECIPE.embedding_lr, RECIPE.weight_decay)
    rates, expected = [group["lr"] for group in optimizer.param_groups], []
    for step in range(RECIPE.steps):
        ids = training.batch(step)
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * RECIPE.lr_factor(step)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert [step for step, _ in history.losses] == [1, 2, 3, 4]
    first = training.batch(0)
    after = model(first, labels=first, use_cache=False).loss.item()
    assert after < expected[0] - 0.02  # it learns, so the comparison is not between constants
    assert [loss for _, loss in history.losses] == pytest.approx(expected, abs=0.02)


def test_an_elastic_step_has_the_mean_loss_of_all_numbers_of_loops(prepared):
    _, tokenizer, stream, _, _ = prepared
    model = model_of(tokenizer, plt_num_loops=3)
    training = compiled.CompiledTraining(model, RECIPE, stream, CPU, compiled=False, elastic=True)
    ids = training.batch(0)
    expected = [model(ids, labels=ids, use_cache=False, num_loops=loops).loss for loops in (1, 2, 3)]
    assert training.step(ids).item() == pytest.approx(torch.stack(expected).mean().item(), abs=0.01)  # bf16
    assert expected[0] != expected[2]
    model.config.plt_normalize_per_loop = False
    with pytest.raises(ValueError, match="plt_normalize_per_loop=True"):
        compiled.CompiledTraining(model, RECIPE, stream, CPU, compiled=False, elastic=True)


def test_a_step_never_waits_for_the_device(prepared):
    """A CUDA graph cannot record a number that the host reads or sends."""
    _, tokenizer, stream, _, _ = prepared
    training = compiled.CompiledTraining(
        model_of(tokenizer, plt_num_loops=3, plt_cross_loop_shift="learned"), RECIPE, stream, CPU, compiled=False
    )
    training.train(1)
    ids = training.batch(1)
    with Calls() as calls:
        training.step(ids)
    names = {name.split(".")[1] for name in calls.names}
    assert "mm" in names and not names & {"_local_scalar_dense", "lift_fresh", "lift_fresh_copy", "nonzero"}


def test_batches_are_the_rows_of_trainer(prepared):
    _, tokenizer, stream, _, _ = prepared
    training = compiled.CompiledTraining(model_of(tokenizer), RECIPE, stream, CPU, compiled=False)
    rows = [training.rows[index]["input_ids"] for index in range(4)]
    assert torch.cat([training.batch(0), training.batch(1)]).tolist() == rows


def test_layers_and_models_share_graphs(prepared, monkeypatch):
    """One graph per loop and one for the loss serve all layers, and a further model compiles only what is new."""
    _, tokenizer, stream, _, _ = prepared
    torch._dynamo.reset()
    counter, compile_function = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: compile_function(function, backend=counter))
    counts = []
    for loops in (2, 3, 3):
        training = compiled.CompiledTraining(model_of(tokenizer, plt_num_loops=loops), RECIPE, stream, CPU)
        training.train(2)
        counts.append(counter.frame_count)
    assert counts == [3, 4, 4]
    ids = training.batch(0)
    assert "forward" in vars(training.model.model.layers[0])
    assert "forward" not in vars(training.trained_model().model.layers[0])
    assert training.trained_model()(ids).logits.isfinite().all()


@pytest.fixture
def run(prepared, tmp_path, monkeypatch):
    """The folder of a run on compressed data that was cut to what fits into 66 seconds, at 20 seconds a step."""
    folder = prepared[0]
    for name in ("data_manifest.json", "heldout.npy"):
        shutil.copy(folder / name, tmp_path)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "train.npy.xz").write_bytes(lzma.compress((folder / "train.npy").read_bytes()))
    monkeypatch.setattr(compiled, "seconds_per_step", lambda training: 20.0)
    assert compiled.train_small(tmp_path, RECIPE, CPU, minutes=1.1, compiled=False) == tmp_path / "compiled"
    return tmp_path


def test_a_run_fits_its_time(prepared, run):
    assert (recipe.load_stream(run, "train") == prepared[2]).all()
    assert read_json(run / "recipe.json")["tokens"] == 3 * RECIPE.tokens_per_step
    state = read_json(run / "compiled" / "trainer_state.json")
    assert state["global_step"] == state["max_steps"] == 3
    assert [entry["step"] for entry in state["log_history"]] == [1, 2, 3]
    model = IQuestPLTCoderForCausalLM.from_pretrained(run / "compiled")
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == model_of(prepared[1]).num_parameters()


@pytest.mark.slow
def test_export_reads_a_run(run, library):
    metrics = export.export(run, run / "export", library)
    assert metrics["training"] == {"tokens": 768, "steps": 3, "finished": True}
    ids = torch.randint(RECIPE.vocab_size, (1, 30))
    ours, theirs = (IQuestPLTCoderForCausalLM.from_pretrained(run / name) for name in ("compiled", "export"))
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_damaged_compressed_data(tmp_path):
    (tmp_path / "train.npy.xz").write_bytes(b"not a stream")
    with pytest.raises(ValueError, match=r"train\.npy cannot be read"):
        recipe.load_stream(tmp_path, "train")


def test_gpu_needs_a_model():
    with pytest.raises(SystemExit, match="Pass `--init FOLDER`"):
        small.main(["--gpu"])
