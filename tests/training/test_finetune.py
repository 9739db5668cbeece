# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning with Transformers' Trainer: its computations, and the script around it."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import run
from paths import ROOT
from tiny import tiny_model, tokens
from transformers import AutoTokenizer, DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM


pytest.importorskip(
    "accelerate", reason="the training scripts need it: pip install '.[training]' in a checkout of iquest-plt"
)
pytest.importorskip(
    "datasets", reason="the training scripts need it: pip install '.[training]' in a checkout of iquest-plt"
)

from finetuning import (
    Gradients,
    assert_same,
    losses_of,
    one_thread,  # noqa: F401 (a fixture for all)
    write_model,
    write_texts,
)
from transformers import Trainer, TrainerState, TrainingArguments

from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify
from iquest_plt.training import common, divergence, finetune, options, progress, run_files, small


ROWS = [{"input_ids": tokens(length, seed=length).tolist()} for length in (3, 17, 9, 2, 12, 5, 7, 11)]
TARGETS = sum(len(row["input_ids"]) - 1 for row in ROWS)
# 20 steps of four documents in one row. One or two threads, eager attention or SDPA, Transformers 5.16.1 or 5.23.0: all
# agree within 5e-7. Changing the learning rate by a thousandth moves the curve by 8e-4.
GOLDEN = [5.078801, 4.998257, 4.384266, 4.385642, 4.014997, 3.913101, 3.834841, 3.623415, 3.468668, 3.50765]
GOLDEN += [3.193509, 3.391928, 2.961681, 3.254913, 2.921976, 3.107708, 2.722454, 3.052441, 2.749515, 3.02641]
TOLERANCE = 1e-5


def pad(rows):
    """Makes a row per document, with a mask, padded alternately on the right and on the left."""
    time = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for index, row in enumerate(rows):
        ids, empty = row["input_ids"], time - len(row["input_ids"])
        for name, values, filler in (
            ("input_ids", ids, 0),
            ("attention_mask", [1] * len(ids), 0),
            ("labels", [-100, *ids[1:]], -100),  # nothing precedes the first token
        ):
            batch[name].append([filler] * empty + values if index % 2 else values + [filler] * empty)
    return {name: torch.tensor(values) for name, values in batch.items()}


flatten = DataCollatorWithFlattening()
flatten_for_kernels = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)


def train(folder, model, collator=flatten, steps=1, **arguments):
    """Trains, and returns the losses of all steps and the gradients of the last."""
    gradients = Gradients()
    fields = {"max_steps": steps, "logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": len(ROWS)}
    fields |= {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_grad_norm": 0.0,
        "logging_nan_inf_filter": False,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **fields | arguments),
        train_dataset=ROWS,
        data_collator=collator,
        callbacks=[gradients],
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], gradients.found


def by_hand(model):
    """Computes the mean loss of all tokens and its gradients, document by document."""
    total = 0
    for row in ROWS:
        ids = torch.tensor([row["input_ids"]])
        logits = model.train()(ids, use_cache=False).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    loss = total / TARGETS
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


# -- training steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("collator", [pad, flatten, flatten_for_kernels], ids=["padded", "flat", "flat for kernels"])
def test_a_batch_equals_its_separate_documents(collator, num_loops, tmp_path):
    """Padded or packed into one row, loss and gradients equal those of separate documents."""
    loss, expected = by_hand(tiny_model(plt_num_loops=num_loops))
    losses, found = train(tmp_path, tiny_model(plt_num_loops=num_loops), collator)
    assert losses == pytest.approx([loss], abs=1e-6)
    assert_same(found, expected)
    assert ("model.layers.0.self_attn.plt_gate.weight" in found) == (num_loops > 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packing_without_positions_differs(attention):
    """Makes sure that the test above can fail: here documents see each other."""
    batch = flatten(ROWS)
    model = tiny_model(attention=attention)
    loss = model(**batch, use_cache=False).loss
    assert abs(loss - by_hand(model)[0]) < 1e-5
    del batch["position_ids"]
    assert abs(model(**batch, use_cache=False).loss - loss) > 1e-2


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("collator", [pad, flatten], ids=["padded", "flat"])
def test_accumulation_equals_one_big_batch(collator, size, tmp_path):
    """Passes have different numbers of tokens, so `num_items_in_batch` must reach the loss."""
    loss, expected = by_hand(tiny_model())
    steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": len(ROWS) // size}
    losses, found = train(tmp_path, tiny_model(), collator, **steps)
    assert losses == pytest.approx([loss], abs=1e-6)
    assert_same(found, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("collator", [pad, flatten], ids=["padded", "flat"])
def test_checkpointing_gives_the_same_gradients(collator, num_loops, use_reentrant, tmp_path):
    plain, checkpointed = tiny_model(plt_num_loops=num_loops), tiny_model(plt_num_loops=num_loops)
    calls = []
    checkpointed.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
    losses, expected = train(tmp_path, plain, collator)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    again, found = train(tmp_path, checkpointed, collator, **options)
    assert len(calls) == 2 * num_loops  # forward, and again for the backward pass
    assert again == pytest.approx(losses, abs=1e-6)
    assert_same(found, expected)


def test_bf16_arithmetic_on_float32_weights(tmp_path):
    model = tiny_model()
    dtypes = set()
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *args: dtypes.add(args[2].dtype))
    losses, found = train(tmp_path, model, steps=30, bf16=True, learning_rate=3e-3)
    exact, _ = train(tmp_path, tiny_model(), steps=30, learning_rate=3e-3)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {g.dtype for g in found.values()} == {torch.float32}
    assert losses[-1] < 0.3 * losses[0]  # a repeated batch
    assert losses != exact and losses == pytest.approx(exact, abs=0.1)


def test_one_loop_trains_as_a_llama(tmp_path):
    model = tiny_model(plt_num_loops=1, attention="eager")
    names = LlamaConfig().to_dict().keys() & model.config.to_dict().keys() - {"architectures", "model_type"}
    config = LlamaConfig(**{name: getattr(model.config, name) for name in names}, attn_implementation="eager")
    llama = LlamaForCausalLM(config)
    unused = llama.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert unused and all(".plt_gate." in name for name in unused)
    gates = {name: model.state_dict()[name].clone() for name in unused}
    options = {"steps": 20, "learning_rate": 1e-2, "weight_decay": 0.1, "per_device_train_batch_size": 3}
    losses, _ = train(tmp_path, model, pad, **options)
    expected, _ = train(tmp_path, llama, pad, **options)
    assert losses == pytest.approx(expected, abs=1e-6) and losses[-1] < 0.5 * losses[0]
    assert_same(dict(model.named_parameters()), {**dict(llama.named_parameters()), **gates})


def test_golden_curve(tmp_path):
    losses, _ = train(tmp_path, tiny_model(), steps=20, learning_rate=3e-3, per_device_train_batch_size=4)
    assert losses == pytest.approx(GOLDEN, abs=TOLERANCE)


# -- the script ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


@pytest.fixture
def command(model_folder, texts, tmp_path):
    """Options of a short run; later options override them."""
    options = {"model": model_folder, "data": texts, "out": tmp_path / "run", "length": 40, "batch": 2, "steps": 5}
    options |= {"lr": 3e-3, "heldout-share": 0.25, "log-steps": 1, "save-steps": 2, "accumulate": 2}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def test_the_joined_pieces_equal_the_documents(model_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    documents = common.load_data(texts, "text", tmp_path)
    pieces = finetune.cut(documents, tokenizer, 40)["input_ids"]
    assert all(2 <= len(piece) <= 40 for piece in pieces)
    found = tokenizer.decode([token for piece in pieces for token in piece])
    files = [file for file in sorted(texts.rglob("*.py")) if file.read_text()]
    assert len(files) == 8 and found == "".join(file.read_text() + tokenizer.eos_token for file in files)


def test_run(command, model_folder, tmp_path, capsys):
    finetune.main(command)
    printed = capsys.readouterr().out
    assert re.search(r"step 5/5  loss \d.*tokens/s", printed) and "held-out" in printed and "bits/byte" in printed
    curve = losses_of(tmp_path / "run")
    assert [step for step, loss, _ in curve if loss] == [1, 2, 3, 4, 5]
    assert [step for step, _, loss in curve if loss] == [2, 4, 5]
    assert curve[-1][2] < curve[2][2]
    assert list((tmp_path / "run" / "logs").rglob("events.out.tfevents*"))
    result = tmp_path / "run" / "model"
    assert verify(result)["problems"] == []
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model_folder, result))
    assert after == before
    stop = [json.loads((folder / "generation_config.json").read_text()) for folder in (model_folder, result)]
    assert set(stop[1]["eos_token_id"]) == set(before["eos_token_id"])
    with pytest.raises(SystemExit, match=r"This run is complete, and .*model is its result"):
        finetune.main(command)


def test_padded_rows_give_the_same_curve(command, tmp_path):
    finetune.main(command)
    flat = losses_of(tmp_path / "run")
    finetune.main([*command, "--out", str(tmp_path / "padded"), "--padded"])
    padded = losses_of(tmp_path / "padded")
    assert [loss for _, loss, _ in flat if loss] == pytest.approx([loss for _, loss, _ in padded if loss], abs=1e-4)


class KilledError(Exception):
    pass


def test_a_killed_run_resumes_exactly(command, tmp_path, monkeypatch, capsys):
    finetune.main([*command, "--out", str(tmp_path / "whole")])

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(divergence.Guard, "on_log", kill)
        with pytest.raises(KilledError):
            finetune.main(command)
    (tmp_path / "run" / "checkpoint-4").mkdir()  # as if killed while writing it
    finetune.main(command)
    assert "Resuming from checkpoint-2" in capsys.readouterr().out
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]
    with pytest.raises(SystemExit, match="has a run with a different --lr, --seed"):
        finetune.main([*command, "--lr", "1e-3", "--seed", "1"])


def interrupt(monkeypatch, step: int, times: int = 1) -> None:
    """Presses Ctrl-C in the given step."""
    begin = progress.Progress.on_step_begin

    def pressed(self, args, state, control, **kwargs):
        begin(self, args, state, control, **kwargs)
        if state.global_step == step - 1:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.Progress, "on_step_begin", pressed)


def test_an_interrupted_run_saves_and_resumes_exactly(command, tmp_path, monkeypatch, capsys):
    finetune.main([*command, "--out", str(tmp_path / "whole")])
    assert capsys.readouterr().out.splitlines()[-1] == f"The result is in {tmp_path / 'whole' / 'model'}"
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt(patch, step=3)
        with pytest.raises(SystemExit, match="130"):
            finetune.main(command)
    said = capsys.readouterr().err
    assert "Saving a checkpoint after this step. Press Ctrl-C again to stop at once.\n" in said
    assert (
        f"Interrupted. Run the same command again to resume from the last checkpoint in {tmp_path / 'run'}.\n" in said
    )
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "run" / "checkpoint-3").is_dir() and not (tmp_path / "run" / "model").exists()
    finetune.main(command)
    assert "Resuming from checkpoint-3" in capsys.readouterr().out
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]


def test_an_interrupt_in_the_last_step_loses_nothing(command, tmp_path, monkeypatch):
    interrupt(monkeypatch, step=5)
    finetune.main(command)
    assert verify(tmp_path / "run" / "model")["problems"] == []


@pytest.fixture
def default_interrupt():
    """Ctrl-C raises KeyboardInterrupt, also if the tests run in the background, where shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_interrupt")
def test_a_second_interrupt_stops_at_once(command, tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, step=1, times=2)
    with pytest.raises(SystemExit, match="130"):
        finetune.main(command)
    assert "There is no checkpoint yet: the same command starts from the beginning.\n" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("option", ["--steps", "--epochs"])
def test_a_run_cannot_get_longer(option, command, tmp_path):
    """Its learning rate has been falling to 0 at the last step."""
    finetune.main([*command, option, "2"])
    with pytest.raises(
        SystemExit, match=rf"a different {option}\. Choose a new folder\. A run cannot get longer, because"
    ):
        finetune.main([*command, option, "3"])


def test_the_command_line_runs_the_script(command, tmp_path):
    code, output, _ = run("finetune", *command)
    assert code == 0 and output.endswith(f"The result is in {tmp_path / 'run' / 'model'}\n")
    code, output, _ = run("finetune", *command, "--lr", "1")
    assert code == 1 and output.startswith("error: ") and "has a run with a different --lr" in output
    assert run("finetune", "--model", "x")[0] == run("finetune", *command, "--no-such-option")[0] == 2


@pytest.mark.parametrize("name", ["finetune", "lora", "sft", "humaneval"])
def test_the_help_shows_the_defaults(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        getattr(options, f"parse_{name}")(["--help"], f"iquest-plt {name}")
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: iquest-plt {name} [-h]")
    assert "(default: None)" not in shown and "(default: False)" not in shown and "default: default" not in shown
    expected = {
        "humaneval": ["512", "runs/humaneval", "0.95"],
        "lora": ["0.0002", "all", "16"],
        "sft": ["packed", "16"],
    }
    for value in ["0", "1", "the model's", *expected.get(name, ["2e-05", "1024"])]:
        assert f"(default: {value})" in shown, value


def test_stops_when_diverged(command):
    with pytest.raises(SystemExit, match=r"The held-out loss at step 2 is nan\. Start again from an older"):
        finetune.main([*command, "--lr", "1e38"])


def test_guard():
    calm = divergence.Guard()
    for step in range(100):
        calm.check(5.0 - step / 25 + step % 2, step)
    with pytest.raises(divergence.DivergedError, match="The loss around step 10"):
        for step in range(100, 110):
            calm.check(8.0, step)
    with pytest.raises(divergence.DivergedError, match="The loss at step 7 is inf"):
        divergence.Guard().check(float("inf"), 7)
    with pytest.raises(divergence.DivergedError, match="The held-out loss at step 9 is nan"):
        divergence.Guard().on_log(None, TrainerState(global_step=9), None, logs={"eval_loss": float("nan")})


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "nowhere"], "config.json is missing in nowhere"),
        (["--data", "nowhere.txt"], "nowhere.txt cannot be read: Unable to find"),
        (["--data", "{tmp}"], "cannot be read"),  # an empty folder
        (["--data", "{tmp}/binary.txt"], "binary.txt cannot be read: 'utf-8' codec"),
        (["--data", "{tmp}/broken.jsonl"], "broken.jsonl cannot be read: JSON parse error"),
        (["--data", "{tmp}/other.jsonl"], "has no field 'text', only words"),
        (["--data", "{tmp}/numbers.jsonl"], "The field 'text' must be a string on every line"),
        (["--data", "{tmp}/gap.jsonl"], "The field 'text' must be a string on every line"),
        (["--data", "{tmp}/blank.jsonl", "--heldout-share", "0"], "There is no text in the data"),
        (["--data", "{tmp}/blank.jsonl", "--heldout-share", "0"], "blank.jsonl: There is no text in the data"),
        (["--heldout", "{tmp}/blank.jsonl"], "blank.jsonl: There is no text in the data"),
        (["--data", "{tmp}/empty.jsonl"], "empty.jsonl cannot be read: it is empty"),
        (["--data", "{tmp}/lines.jsonl"], "lines.jsonl cannot be read: it is empty"),
        (["--data", "{tmp}/objects.jsonl"], "objects.jsonl cannot be read: its lines have no fields"),
        (["--data", "{tmp}"], "data cannot be read: it contains no files"),
        (["--data", "{tmp}/one.txt"], "Holding out a share needs at least two documents"),
        (["--heldout-share", "1"], "a share between 0 and 1"),
        (["--length", "1025"], "--length must be 2 to 1024 for this model, got 1025"),
    ],
)
def test_refusals(options, message, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    if options[1] != "{tmp}":
        (data / "binary.txt").write_bytes(b"\xff\xfe")
        (data / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
        (data / "other.jsonl").write_text('{"words": "a"}\n')
        (data / "numbers.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
        (data / "gap.jsonl").write_text('{"text": "a"}\n{"other": "b"}\n')
        (data / "blank.jsonl").write_text('{"text": ""}\n')
        for name, content in (("empty", ""), ("lines", "\n \n"), ("objects", "{}\n")):
            (data / f"{name}.jsonl").write_text(content)
        (data / "one.txt").write_text("one document")
    with pytest.raises(SystemExit, match=re.escape(message)) as refusal:
        finetune.main([*command, *(option.format(tmp=data) for option in options)])
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_empty_files_are_skipped(tmp_path):
    (tmp_path / "0.jsonl").write_text("")
    (tmp_path / "1.jsonl").write_text('{"text": "a"}\n')
    assert common.load_data(tmp_path, "text", tmp_path / ".cache")["text"] == ["a"]


@pytest.mark.parametrize("content", ["", '{"lr": ', "[]", "\udcff", None])
def test_errors_name_damaged_settings(content, command, tmp_path, capsys):
    finetune.main([*command, "--steps", "2"])
    settings = tmp_path / "run" / "settings.json"
    settings.unlink()
    if content is not None:
        settings.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit, match=r"settings\.json cannot be read \(.+\)\. Restore it, or") as refusal:
        finetune.main([*command, "--steps", "2"])
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_json_files_are_written_atomically(tmp_path, monkeypatch):
    run_files.write_json(tmp_path / "a.json", {"x": 1})
    for content in (object(), {"y": object()}):
        with pytest.raises(TypeError):
            run_files.write_json(tmp_path / "a.json", content)

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        run_files.write_json(tmp_path / "a.json", {"x": 2})
    assert run_files.read_json(tmp_path / "a.json") == {"x": 1}


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt"])
def test_a_truncated_checkpoint_is_not_resumed_from(name, command, tmp_path, capsys):
    finetune.main([*command, "--steps", "4"])
    out = tmp_path / "run"
    shutil.rmtree(out / "model")
    (out / "checkpoint-of-mine").mkdir()
    file = out / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert small.last_checkpoint(out) == out / "checkpoint-2"
    finetune.main([*command, "--steps", "4"])
    assert "Resuming from checkpoint-2" in capsys.readouterr().out and (out / "model").is_dir()


@pytest.mark.parametrize("option", ["--batch", "--accumulate", "--steps", "--epochs", "--num-loops", "--save-steps"])
def test_counts_must_be_at_least_one(option, command, capsys):
    with pytest.raises(SystemExit):
        finetune.main([*command, option, "0"])
    assert f"argument {option}: invalid count value: '0'" in capsys.readouterr().err


def test_small_checkpoint(tmp_path):
    """Follows a user: convert, train with another number of loops, load as remote code without the package."""
    convert(str(ROOT / "checkpoints" / "small"), tmp_path / "model")
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "The quick onyx goblin jumps over the lazy dwarf.\n" * 4}) + "\n")
    options = ["--model", tmp_path / "model", "--data", text, "--heldout", text, "--out", tmp_path / "run"]
    options += ["--length", 64, "--steps", 6, "--lr", 1e-3, "--num-loops", 3, "--log-steps", 1, "--save-steps", 3]
    finetune.main([str(option) for option in options])
    curve = [loss for _, _, loss in losses_of(tmp_path / "run") if loss]
    assert curve[-1] < 0.7 * curve[0]
    code = """if True:
        import sys, torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
        assert "iquest_plt" not in sys.modules and tokenizer.chat_template
        assert model.config.plt_num_loops == 3 and model.dtype == torch.bfloat16
        inputs = tokenizer("The quick onyx", return_tensors="pt")
        print(tokenizer.decode(model.generate(**inputs, max_new_tokens=4, do_sample=False)[0]))
    """
    command = [sys.executable, "-c", code, str(tmp_path / "run" / "model")]
    output = subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE).stdout.decode()
    assert output.startswith("The quick onyx goblin")
