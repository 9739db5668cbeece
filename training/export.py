# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Turns a training checkpoint into a model folder: weights, card, training curve, measurements, golden output."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from ..conversion.layout import AUTO_MAP, CODE_FILES, ROOT
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..tokenization import bpe
from ..utils.figures import try_draw
from . import evaluate
from .card import plot_curve, render_card
from .kernels import register_attention
from .run_files import COMPILED, last_checkpoint, read_json, write_json
from .samples import PENALTY, load_and_complete


LOOPS = (1, 2, 3)  # measured loop counts; the model is trained with 2
GOLDEN_TOKENS, GOLDEN_POSITIONS = 128, 8  # tokens (more than the window), and last positions to keep


def export(out: str | Path, folder: str | Path, stdlib: Path | None = None, prepared: str | Path | None = None) -> dict:
    """
    Writes the model folder for the last checkpoint of the run `out`, overwriting files, and returns its metrics. The
    data are described in the folder `prepared`; default: `out`.
    """
    out, folder, prepared = Path(out), Path(folder), Path(prepared or out)
    compiled = out / COMPILED
    checkpoint = compiled if compiled.exists() else last_checkpoint(out)
    if checkpoint is None:
        raise FileNotFoundError(f"{out} has no checkpoint. Train first.")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_json(prepared / "data_manifest.json")
    recipe = read_json(out / "recipe.json")
    state = read_json(checkpoint / "trainer_state.json")
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")

    write_model(checkpoint, folder, tokenizer)
    shutil.copyfile(prepared / "data_manifest.json", folder / "data_manifest.json")
    documents = evaluate.heldout_documents(manifest, stdlib)
    write_golden(folder, tokenizer, documents[0].text)
    print("Measuring bits per byte ...", flush=True)
    metrics = measure(folder, tokenizer, documents)
    log = write_log(folder, state, recipe)
    metrics["training"] = {
        "tokens": state["global_step"] * recipe["tokens_per_step"],
        "steps": state["global_step"],
        "finished": state["global_step"] >= state["max_steps"],
    }
    if recipe.get("initial"):
        metrics["training"]["tokens_before"] = tokens_of(Path(recipe["initial"]))
    metrics["python_version"] = manifest["python_version"]
    write_json(folder / "metrics.json", metrics)
    try_draw("training_curve.png", plot_curve, folder / "training_curve.png", log, manifest, metrics)
    card = render_card(metrics, manifest, recipe, *load_and_complete(folder, [1.0, PENALTY]))
    (folder / "README.md").write_text(card)
    print(json.dumps(metrics["bits_per_byte"]), flush=True)
    return metrics


def tokens_of(folder: Path) -> int:
    """Returns how many tokens a model folder written by `export` was trained on, in all stages."""
    training = read_json(folder / "metrics.json")["training"]
    return training["tokens"] + training.get("tokens_before", 0)


def write_model(checkpoint: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes bf16 weights, configurations, tokenizer, and the code files that `trust_remote_code=True` runs."""
    model = IQuestPLTCoderForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(bpe.STOP_TOKENS),
        pad_token_id=tokenizer.pad_token_id,
    )
    for name in CODE_FILES:  # symlinks of an earlier export: saving would write through them
        (folder / name).unlink(missing_ok=True)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "auto_map": AUTO_MAP})
    bpe.save(tokenizer, folder)
    for name in CODE_FILES:
        target = folder / name
        target.unlink(missing_ok=True)
        if folder.resolve().is_relative_to(ROOT):  # links instead of copies inside the repository
            target.symlink_to(os.path.relpath(ROOT / name, folder.resolve()))
        else:
            shutil.copyfile(ROOT / name, target)


@torch.no_grad()
def write_golden(folder: Path, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Writes the first tokens of a held-out file and, for each loop count, the logits of the last positions.

    `logits_r{R}` (1, positions, vocab_size) at `positions` of `input_ids` (1, tokens) are computed in float32 from the
    saved bf16 weights.
    """
    model = IQuestPLTCoderForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = bpe.encode_documents(tokenizer, [text])[0][:GOLDEN_TOKENS]
    input_ids = torch.tensor([ids])
    positions = torch.arange(len(ids))[-GOLDEN_POSITIONS:]
    golden = {"input_ids": input_ids, "positions": positions}
    for loops in LOOPS:
        logits = model(input_ids, use_cache=False, num_loops=loops).logits
        golden[f"logits_r{loops}"] = logits[:, positions].contiguous()
    save_file(golden, folder / "golden.safetensors")


def measure(folder: Path, tokenizer: PreTrainedTokenizerBase, documents: list) -> dict:
    """Measures bits per byte on the held-out files, of the model for each loop count and of `xz -9`."""
    model = IQuestPLTCoderForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=register_attention()
    )
    groups = {
        "all": documents,
        "library": [document for document in documents if "test" not in document.path],
        "tests": [document for document in documents if "test" in document.path],
    }
    encoded = {d.path: bpe.encode_documents(tokenizer, [d.text])[0] for d in documents}
    bits = {
        loops: {
            path: evaluate.document_bits(model, ids, tokenizer.eos_token_id, loops) for path, ids in encoded.items()
        }
        for loops in LOOPS
    }

    def of_model(group, loops):
        return sum(bits[loops][d.path] for d in group) / sum(d.num_bytes for d in group)

    result = {}
    for name, group in groups.items():
        if group:
            xz = evaluate.xz_bits_per_byte([document.text for document in group])
            result[name] = {
                "files": len(group),
                "bytes": sum(document.num_bytes for document in group),
                **{f"plt_r{loops}": round(of_model(group, loops), 4) for loops in LOOPS},
                **{f"xz_9_{how}": round(value, 4) for how, value in xz.items()},
                **{
                    f"below_xz_9_{how}": round(1 - of_model(group, model.config.plt_num_loops) / value, 4)
                    for how, value in xz.items()
                },
            }
    # A few short files, for a test that repeats the measurement.
    part = sorted((d for d in documents if 1000 < d.num_bytes < 8000), key=lambda d: d.path)[:4]
    return {
        "parameters": model.num_parameters(),
        "window": evaluate.WINDOW,
        "stride": evaluate.STRIDE,
        "bits_per_byte": result,
        "slice": {
            "paths": [document.path for document in part],
            "plt_r2": round(of_model(part, 2), 4) if part else None,
        },
    }


def write_log(folder: Path, state: dict, recipe: dict) -> list[dict]:
    """Writes training_log.json: the trainer's log, with tokens seen instead of epochs."""
    names = ("step", "loss", "grad_norm", "learning_rate", "eval_loss")
    log = []
    for entry in state["log_history"]:
        if "loss" in entry or "eval_loss" in entry:
            values = {name: round(entry[name], 6) for name in names if name in entry}
            log.append({**values, "tokens": entry["step"] * recipe["tokens_per_step"]})
    write_json(folder / "training_log.json", log)
    return log
