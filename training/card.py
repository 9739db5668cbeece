# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The model card of the small checkpoint and its training curve."""

import math
import textwrap
from pathlib import Path

from .samples import NEW_TOKENS, PENALTY, Sample, summary


SHOWN_SAMPLES = 3  # the first of the list; the others are only counted
TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [plt, looped-transformer, python, code]
---

# Small PLT

A Parallel Loop Transformer of {parameters:.1f} million parameters that completes Python. It is small enough to ship
with its code: for tests, demonstrations and benchmarks, not for real work. It was trained with R = {loops} loops on the
sources of {sources}, with
{commands}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "checkpoints/small"
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(path)
inputs = tokenizer("def main():\\n", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64, num_loops=2)[0]))
```

## How good it is

Bits per byte on {heldout_files} whole files held out of training ({heldout_bytes:,} bytes); lower is better:

| files | PLT R = 1 | **R = 2** | R = 3 | `xz -9`, each file | R = 2 is below by | `xz -9`, together | by |
|---|---|---|---|---|---|---|---|
{rows}

All numbers are for these bf16 weights. The model starts each file with fresh context, as `xz -9 FILES` does;
"together" is one archive of all files, in which `xz` also exploits what they share. The model sees {window} tokens at a
time, in windows that advance by {stride}; the end of each file is predicted too. R = 1 and R = 3 run the same weights
with loop counts that they were not trained for. See `metrics.json` for the numbers and `training/evaluate.py` for the
method.

![Training curve](training_curve.png)

## What it writes

`training/prompts.txt` has {prompts} beginnings of Python code, which the model completed without sampling, with up to
{new_tokens} tokens (`training/samples.py` defines the numbers):

* {greedy_summary};
* with a repetition penalty of {penalty}: {summary}.

A model of this size repeats itself{less}. Here are the first {shown_samples} of the latter, not the best ones:

```python
{samples}
```

`python -m iquest_plt.training.samples checkpoints/small --repetition-penalty {penalty}` prints them all.

## How it was made

* Data: {train_files} files, {train_bytes:,} bytes, {train_tokens:,} tokens; `data_manifest.json` lists their hashes.
  Generated tables are left out. Copies are dropped, and files that share much text go to the same side of the split.
* Tokenizer: byte-level BPE of {vocab_size} entries learned from {tokenizer_files}; no BOS is added.
* {layers} layers of width {hidden_size}, {heads} query heads and {kv_heads} key/value head(s), window 64, gate on the
  residual stream.
{before}* {tokens:,} tokens in steps of {tokens_per_step:,}, in {rows_of_run}. Rows are
  contiguous slices of the token stream, in which an end token separates the files.
{unlikelihood}* Muon for the layers' matrices (learning rate {muon_lr}), AdamW for the rest ({adamw_lr}, embeddings
  {embedding_lr}); warm-up, constant, then linear decay to 0. float32 weights, bf16 arithmetic.

## Limits and licence

It knows the standard library's style and little else: names are plausible, programs are often wrong. It was not trained
on chats; the chat and fill-in-the-middle tokens are untrained. It never saw more than {row} tokens at once.

Weights and code: Apache-2.0. The training text has other licences, under which longer verbatim output may fall:

* Python's standard library: PSF-2.0, with the licences of the parts named there
{licences}
"""

UNLIKELIHOOD = """* Each step of this run also continued pieces of training text without sampling, and made the words of
  repeated n-grams less likely (`training/unlikelihood.py`, weight {weight}).
"""


def render_card(metrics: dict, manifest: dict, recipe: dict, greedy: list[Sample], samples: list[Sample]) -> str:
    """Fills TEMPLATE with the measured numbers and the completions of `prompts.txt`, greedy and with PENALTY."""
    rows = [
        f"| {name} | {m['plt_r1']:.3f} | **{m['plt_r2']:.3f}** | {m['plt_r3']:.3f} | {m['xz_9_per_file']:.3f} "
        f"| {m['below_xz_9_per_file']:.1%} | {m['xz_9_together']:.3f} | {m['below_xz_9_together']:.1%} |"
        for name, m in metrics["bits_per_byte"].items()
    ]
    model, totals = recipe["model"], manifest["totals"]
    wheels = manifest.get("wheels", [])
    sources = f"the standard library of Python {metrics['python_version']}"
    if wheels:
        sources += f" and of {len(wheels)} packages (listed below)"
    before = metrics["training"].get("tokens_before")
    row, early_row = recipe["row"], recipe["early_row"]
    later = f", {row} in the last {recipe['long_row_share']:.0%} of the run"
    penalised = recipe.get("unlikelihood_weight", 0) > 0
    return TEMPLATE.format(
        sources=sources,
        commands="`python -m iquest_plt.training.small`" + (" and `training.unlikelihood`" if penalised else ""),
        less=", though its last stage was trained against that" if penalised else "",
        unlikelihood=UNLIKELIHOOD.format(weight=recipe["unlikelihood_weight"]) if penalised else "",
        before=f"* {before:,} tokens in earlier runs, on the standard library alone at first; then:\n"
        if before
        else "",
        tokenizer_files="the first run's training files" if before else "the training files",
        rows_of_run=f"rows of {early_row} tokens{'' if early_row == row else later}",
        licences="\n".join(_licences(wheels)),
        **{name: recipe[name] for name in ("tokens_per_step", "row", "muon_lr")},
        adamw_lr=recipe["adamw_lr"],
        embedding_lr=recipe["embedding_lr"],
        vocab_size=recipe["vocab_size"],
        parameters=metrics["parameters"] / 1e6,
        loops=2,
        heldout_files=totals["heldout"]["files"],
        heldout_bytes=totals["heldout"]["bytes"],
        train_files=totals["train"]["files"],
        train_bytes=totals["train"]["bytes"],
        train_tokens=totals["train"]["tokens"],
        tokens=metrics["training"]["tokens"],
        window=metrics["window"],
        stride=metrics["stride"],
        rows="\n".join(rows),
        prompts=len(samples),
        new_tokens=NEW_TOKENS,
        greedy_summary=summary(greedy),
        penalty=PENALTY,
        summary=summary(samples),
        shown_samples=SHOWN_SAMPLES,
        samples="\n\n\n".join(
            f"{sample.prompt}# ---- the model continues ----\n{sample.completion.rstrip()}"
            for sample in samples[:SHOWN_SAMPLES]
        ),
        layers=model["num_hidden_layers"],
        hidden_size=model["hidden_size"],
        heads=model["num_attention_heads"],
        kv_heads=model["num_key_value_heads"],
    )


def _licences(wheels: list[dict]) -> list[str]:
    """Returns a list item for each licence, with the wheels that have it."""
    found: dict[str, list[str]] = {}
    for wheel in wheels:
        found.setdefault(wheel["licence"], []).append(f"{wheel['name']} {wheel['version']}")
    lines = [f"* {licence}: {', '.join(names)}" for licence, names in sorted(found.items())]
    return [textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) for line in lines]


def plot_curve(path: Path, log: list[dict], manifest: dict, metrics: dict) -> None:
    """Draws the loss over tokens in bits per byte, with `xz -9` on the held-out files for comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for key, split, label, style in (
        ("loss", "train", "training rows", {"color": "tab:blue", "alpha": 0.5, "linewidth": 0.8}),
        ("eval_loss", "heldout", "sample of held-out rows", {"color": "tab:orange", "marker": "."}),
    ):
        totals = manifest["totals"][split]
        scale = totals["tokens"] / totals["bytes"] / math.log(2)
        points = [(entry["tokens"] / 1e6, entry[key] * scale) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    result = metrics["bits_per_byte"]["all"]
    axes.axhline(result["xz_9_per_file"], color="black", linestyle="--", linewidth=1, label="xz -9, each file")
    axes.axhline(result["xz_9_together"], color="gray", linestyle="--", linewidth=1, label="xz -9, files together")
    axes.axhline(
        result["plt_r2"], color="tab:green", linestyle=":", linewidth=1.5, label="final weights, all held-out files"
    )
    axes.set(xlabel="million tokens", ylabel="bits per byte", ylim=(0.5, 3.0), title="Small PLT, R = 2")
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
