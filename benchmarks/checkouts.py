# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Is this checkout as fast as another one? Times decode steps with all loops together, and prompts, of one model in both
checkouts: the same random weights, in one process, in turns.

    git worktree add ../before COMMIT
    python -m iquest_plt.benchmarks.checkouts --before ../before
"""

import argparse
import importlib.util
import statistics
import sys
from pathlib import Path

import torch

from .common import add_common_arguments, add_shape_arguments, build, parse, plt_config, report, timed


COLUMNS = ["what", "loops R", "ms before", "ms now", "now over before"]


def load_package(folder: Path):
    """Imports the package of another checkout under a different name."""
    name = "iquest_plt_before"
    locations = [str(folder)]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=locations)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(package, plt):
    """Builds the same model with another checkout's code; it shares the weights of `plt`."""
    fields = {k: v for k, v in plt.config.to_dict().items() if k not in ("auto_map", "architectures")}
    with torch.device("meta"):
        model = package.IQuestPLTCoderForCausalLM(package.IQuestPLTCoderConfig(**fields))
    model.load_state_dict(plt.state_dict(), assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(plt.device)
    model.set_attn_implementation(plt.config._attn_implementation)
    return model.eval()


def _package(model):
    """Returns the model's own package. Transformers would use the cache of the package imported last."""
    return sys.modules[type(model).__module__.rpartition(".")[0]]


def compare(models: dict, steps: dict, rounds: int, device) -> dict[str, list[float]]:
    """Times each model's step in turns, in seconds. The order alternates between rounds."""
    times = {name: [] for name in models}
    for turn in range(rounds):
        for name in sorted(models, reverse=turn % 2 == 1):
            times[name].append(timed(steps[name], device))
    return times


def row(what: str, num_loops: int, times: dict[str, list[float]]) -> list:
    before, now = ([1e3 * second for second in times[name]] for name in ("before", "now"))
    ratio = statistics.median(b / a for a, b in zip(before, now, strict=True))
    return [what, num_loops, round(statistics.median(before), 2), round(statistics.median(now), 2), round(ratio, 3)]


@torch.no_grad()
def decode(models: dict, num_loops: int, arguments: argparse.Namespace, batch: int) -> list:
    ids = torch.randint(1000, (batch, arguments.prompt), device=arguments.device)
    steps = {}
    for name, model in models.items():
        cache = _package(model).PLTCache(model.config, num_loops)
        model(ids, num_loops=num_loops, logits_to_keep=1, past_key_values=cache)
        steps[name] = lambda model=model, cache=cache: model(ids[:, :1], num_loops=num_loops, past_key_values=cache)
    compare(models, steps, 5, arguments.device)
    return row(f"decode, batch {batch}", num_loops, compare(models, steps, arguments.tokens, arguments.device))


@torch.no_grad()
def prompt(models: dict, num_loops: int, arguments: argparse.Namespace, length: int) -> list:
    ids = torch.randint(1000, (1, length), device=arguments.device)
    steps = {
        name: lambda model=model: model(ids, num_loops=num_loops, logits_to_keep=1, use_cache=False)
        for name, model in models.items()
    }
    compare(models, steps, 1, arguments.device)
    return row(f"prompt of {length:,}", num_loops, compare(models, steps, arguments.rounds, arguments.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    add_shape_arguments(parser, hidden=1024)
    parser.add_argument("--prompt", type=int, default=256, help="prompt length before decoding, in tokens")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096], help="prompt lengths to time, in tokens")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="batch sizes of decoding")
    parser.add_argument("--tokens", type=int, default=60, help="tokens timed per run")
    parser.add_argument("--rounds", type=int, default=5, help="runs timed per prompt")
    add_common_arguments(parser, loops=[1, 2, 4])
    arguments = parse(parser)
    plt = build(plt_config(arguments.hidden, arguments.layers), arguments)
    models = {"before": model_of(load_package(arguments.before), plt), "now": plt}
    rows = []
    for num_loops in arguments.loops:
        rows += [decode(models, num_loops, arguments, batch) for batch in arguments.batch]
        rows += [prompt(models, num_loops, arguments, length) for length in arguments.lengths]
    arguments.before = arguments.before.name
    results = [dict(zip(COLUMNS, values, strict=True)) for values in rows]
    report("Is this checkout as fast as another one?", "checkouts", arguments, COLUMNS, rows, {"results": results})


if __name__ == "__main__":
    main()
