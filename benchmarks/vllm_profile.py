# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Where does a decode step of vLLM with the plugin spend its time on a CPU? Timers around the functions of a step give the
share of each kind of work, without the work of others that it calls. Weights are random, nothing is compiled, and the
numbers of loops take turns step by step.

    python -m iquest_plt.benchmarks.vllm_profile --hidden 2048 --layers 4
"""

import argparse
import statistics
import time
from collections import defaultdict

from .common import add_shape_arguments, parse, plt_config, report
from .vllm_decode import (
    add_engine_arguments,
    engine,
    keep_engines_in_this_process,
    share_weights,
    step_times,
)


KINDS = ["products", "attention", "norms", "rotary", "activation", "gates", "copies", "carry", "planning", "sampler"]
KINDS += ["scheduler and host"]


class Timers:
    """Seconds by kind of work. Of nested functions, only the innermost one's clock runs."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.stack: list[str] = []
        self.since = 0.0

    def _switch(self) -> None:
        now = time.perf_counter()
        if self.stack:
            self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def watch(self, owner, name: str, kind: str) -> None:
        """Counts the time of `owner.name` as `kind`."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            self._switch()
            self.stack.append(kind)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self.stack.pop()

        setattr(owner, name, timed)


def watch_engine(plugin) -> Timers:
    """Puts timers around the functions of an engine's steps."""
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.linear import LinearBase

    from iquest_plt.serving.vllm.model import HiddenGate

    timers, core = Timers(), plugin.engine_core.engine_core
    (runner,) = plugin.collective_rpc(lambda worker: worker.model_runner)
    model = runner.model
    timers.watch(core, "step_fn", "scheduler and host")
    timers.watch(runner, "_build_attention_metadata", "planning")
    timers.watch(runner, "_sample", "sampler")
    timers.watch(model, "compute_logits", "products")
    timers.watch(model, "forward", "copies")  # joins and cuts the rows of loops
    classes = {RMSNorm: "norms", SiluAndMul: "activation", Attention: "attention", LinearBase: "products"}
    for module in model.modules():
        kind = next((kind for cls, kind in classes.items() if isinstance(module, cls)), None)
        if isinstance(module, HiddenGate):
            continue  # counted by `_mix`
        if kind:
            timers.watch(module, "forward", kind)
    for layer in model.model.layers:
        timers.watch(layer.self_attn.rotary_emb, "forward", "rotary")
        timers.watch(layer.self_attn, "_mix", "gates")
    if model.config.plt_num_loops > 1:
        for name in ("write", "read_before"):
            timers.watch(model.carry, name, "carry")
    return timers


def measure(engines: dict, timers: dict[int, Timers], arguments: argparse.Namespace, batch: int) -> list[dict]:
    """Steps all engines in turns; returns each one's time over R = 1, and the share of each kind of work."""

    def forget_warm_up() -> None:
        for of_engine in timers.values():
            of_engine.seconds.clear()

    times, results = step_times(engines, arguments, batch, when_warm=forget_warm_up), []
    for loops, of_loops in times.items():
        seconds, total = timers[loops].seconds, sum(of_loops)
        seconds["scheduler and host"] += total - sum(seconds.values())
        ratio = statistics.median(a / b for a, b in zip(of_loops, times[1], strict=True))
        shares = {kind: round(100 * seconds[kind] / total, 1) for kind in KINDS}
        results.append({"batch": batch, "R": loops, "over R = 1": round(ratio, 3), **shares})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=2048, layers=4)
    add_engine_arguments(parser, loops=[1, 2], prompt=128, tokens=40, dtypes=["bfloat16", "float32"])
    parser.set_defaults(batch=[1, 8, 32])
    arguments = parse(parser)
    keep_engines_in_this_process()
    config, engines = plt_config(arguments.hidden, arguments.layers), {}
    for loops in arguments.loops:
        config.plt_num_loops = loops
        engines[loops] = engine(config, arguments)
        share_weights(engines[loops], engines[1])
    timers = {loops: watch_engine(plugin) for loops, plugin in engines.items()}
    results = [result for batch in arguments.batch for result in measure(engines, timers, arguments, batch)]
    columns = ["batch", "R", "over R = 1", *(f"{kind}, %" for kind in KINDS)]
    rows = [list(result.values()) for result in results]
    report("Where does a decode step in vLLM go?", "vllm_profile", arguments, columns, rows, {"results": results})


if __name__ == "__main__":
    main()
