# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs the distributed tests' work in each process, and provides the same work for one process to compare:

    accelerate launch --config_file CONFIG tests/helpers/distributed_worker.py FOLDER PART ...

The first process writes FOLDER/PART.pt.
"""

import contextlib
import faulthandler
import os
import sys
from pathlib import Path

import torch
from tiny import tiny_model, tokens
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, Trainer, TrainingArguments

from iquest_plt.training import common, divergence, finetune
from iquest_plt.training.elastic import ElasticTrainer


TIME_LIMIT = 600  # seconds per process; on an idle machine it takes 30
GLOBAL_BATCH = 4
# Lengths differ so much that averaging the processes' mean losses would give a wrong loss.
ROWS = [{"input_ids": tokens(length, seed=length).tolist()} for length in (3, 17, 9, 2, 12, 5, 7, 11)]


def case(num_loops=2, on_hidden=True, checkpointing=False, accumulate=1, trainer=None, **fields):
    """Describes a model and its training."""
    fields |= {"plt_num_loops": num_loops, "plt_gate_use_hidden_states": on_hidden}
    arguments = {"gradient_checkpointing": checkpointing, "gradient_accumulation_steps": accumulate}
    return {"fields": fields, "arguments": arguments, "trainer": trainer or {}}


CASES = {
    "one loop": case(1, checkpointing=True),
    "two loops": case(2),
    "two loops, gate on the query": case(2, on_hidden=False, checkpointing=True),
    "three loops": case(3, checkpointing=True, accumulate=2),
    "tied": case(3, on_hidden=False, tie_word_embeddings=True),
    "no gates": case(2, checkpointing=True, plt_loop_attention="shared"),
    "loss on all loops": case(3, plt_normalize_per_loop=False, trainer={"loop_loss_weights": [1, 2, 3]}),
    "loss on the first loop": case(2, checkpointing=True, trainer={"loop_loss_weights": [1, 0]}),
    "drawn loops": case(3, checkpointing=True, trainer={"loop_counts": [1, 2, 3], "loop_loss_weights": [2, 1, 1]}),
}
GRID = {
    f"{num_loops} {on_hidden} {checkpointing}": case(num_loops, on_hidden, checkpointing)
    for num_loops in (1, 2, 3)
    for on_hidden in (True, False)
    for checkpointing in (True, False)
}

TENSOR_PARALLEL = {  # the head in Transformers 5.16 needs an even vocabulary
    "gate on the residual": {"vocab_size": 98},
    "gate on the query": {"vocab_size": 98, "plt_gate_use_hidden_states": False, "attention_bias": True},
    "tied": {"vocab_size": 98, "tie_word_embeddings": True, "plt_num_loops": 3},
}
MULTI_QUERY = {"vocab_size": 98, "num_key_value_heads": 1}


def train(folder: Path, case: dict, processes: int = 1) -> dict:
    """Trains three steps; returns losses, gradient norms, final weights, and how many weights this process holds."""
    model = tiny_model(**case["fields"])
    common.freeze_unused_gates(model)
    arguments = TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=GLOBAL_BATCH // processes // case["arguments"]["gradient_accumulation_steps"],
        optim="sgd",  # Adam would hide a wrong scale
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.5,  # small enough to clip
        weight_decay=0.1,  # moves weights that have a gradient, even if it is zero
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **case["arguments"],
    )
    trainer_class = ElasticTrainer if case["trainer"] else Trainer
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=ROWS,
        data_collator=DataCollatorWithFlattening(),
        **case["trainer"],
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "losses": [entry["loss"] for entry in steps],
        "norms": [entry["grad_norm"] for entry in steps],
        "here": sum(getattr(p, "_local_tensor", p).numel() for p in trainer.model.parameters()),
        "weights": common.gather(trainer),
    }


def train_all(folder: Path, cases: dict, processes: int = 1) -> dict:
    return {name: train(folder, each, processes) for name, each in cases.items()}


class KilledError(Exception):
    pass


@contextlib.contextmanager
def killed_at(step: int):
    """Kills a run of the scripts when it logs the given step."""

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KilledError

    before, divergence.Guard.on_log = divergence.Guard.on_log, on_log
    try:
        yield
    except KilledError:
        pass
    finally:
        divergence.Guard.on_log = before


def script(folder: Path, out: str, processes: int = 1) -> list[str]:
    """Returns the options of a short run of a script on FOLDER/model and FOLDER/texts."""
    options = {"model": folder / "model", "data": folder / "texts", "out": folder / out, "length": 40}
    options |= {"batch": GLOBAL_BATCH // processes, "steps": 5, "lr": 3e-3, "heldout-share": 0.25}
    options |= {"log-steps": 1, "save-steps": 2}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def run_scripts(folder: Path, processes: int) -> None:
    """Runs the script once without interruption, and once killed and resumed."""
    finetune.main(script(folder, "whole", processes))
    with killed_at(3):
        finetune.main(script(folder, "again", processes))
    finetune.main(script(folder, "again", processes))


def refusal(folder: Path, processes: int) -> str:
    try:
        finetune.main(script(folder, "refused", processes))
    except SystemExit as error:
        return str(error)


def tensor_parallel(folder: Path, name: str, fields: dict, rank: int) -> dict:
    """Does the work of `step` with the weights split over the processes, and saves the model."""
    path = folder / name
    if rank == 0:
        tiny_model(**fields).save_pretrained(path)
    torch.distributed.barrier()
    model = AutoModelForCausalLM.from_pretrained(path, tp_plan="auto")
    q_proj = model.model.layers[0].self_attn.q_proj.weight
    assert q_proj.to_local().shape[0] == model.config.hidden_size // 2
    result = step(model)
    model.save_pretrained(folder / f"{name}, saved")
    return result


def step(model) -> dict:
    """Generates texts and makes a training step; returns logits, loss, gradients and texts."""
    ids = tokens(2, 24)
    with torch.no_grad():
        texts = [
            model.eval().generate(ids[:, :8], max_new_tokens=10, min_new_tokens=10, do_sample=False, num_loops=loops)
            for loops in (1, 3)
        ]
    outputs = model.train()(ids, labels=ids)
    outputs.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    return {
        "logits": outputs.logits.detach(),
        "loss": outputs.loss.item(),
        "gradients": {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in gradients.items()},
        "texts": torch.stack(texts),
    }


def shard_on_cpu() -> None:
    """Makes accelerate treat CPU processes as accelerators, because it only shards over those."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def main(folder: str, *parts: str) -> None:
    from accelerate import PartialState

    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    PartialState.destroy_process_group = lambda self: None  # the scripts call it at their end
    prepare_backend = PartialState._prepare_backend
    folder = Path(folder)
    for part in parts:
        name, _, what = part.partition("-")
        os.environ["ACCELERATE_USE_FSDP"] = str(name in ("fsdp2", "refused")).lower()
        PartialState._prepare_backend = prepare_backend
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        if name == "fsdp2":
            shard_on_cpu()
        if name == "refused":
            result = refusal(folder / "ddp", processes)
        elif name == "tp":
            result = {key: tensor_parallel(folder, key, fields, rank) for key, fields in TENSOR_PARALLEL.items()}
            try:
                tensor_parallel(folder, "multi-query", MULTI_QUERY, rank)
            except ValueError as error:
                result["refusal"] = str(error)
        elif what == "scripts":
            result = run_scripts(folder / name, processes)
        else:
            result = train_all(folder / "train", GRID if what == "grid" else CASES, processes)
        if rank == 0:
            torch.save(result, folder / f"{part}.pt")
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
