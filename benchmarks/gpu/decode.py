# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Stage 2: what does one more loop cost at decode, at the released size?

Runs a step in three ways: through `generate()` with a static cache, compiled with CUDA graphs, as Transformers does for
`cache_implementation="static"`; the same step captured in one CUDA graph without a compiler; and op by op with the
default cache. Times are milliseconds per decode step.

Compiling takes most of the time, so the compiled cases run in order of importance. PyTorch keeps compiled graphs on
disk, so a second run on the same machine is faster.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from transformers import DynamicCache, StaticCache, StoppingCriteria

from ...attention_plt import ResidualGate
from ...compat_plt import CACHE_NAME
from .models import Hardware, bytes_per_step, full_size_models
from .right import compile_config
from .stage import Stage, peak_gb, seconds_each, synchronize


ROOM = 128  # room for new tokens in a static cache, after the context
LLAMA = "Llama"


class Decoding:
    """Times decode steps of the PLT for R loops, or of the Llama."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.plt, self.llama = full_size_models(stage)
        self.hardware = Hardware.measure(stage)

    def model_of(self, loops: int | str):
        """Returns the model, and the arguments that make it run `loops` loops."""
        return (self.llama, {}) if loops == LLAMA else (self.plt, {"num_loops": loops})

    def result(self, seconds: float, loops: int | str, batch: int, context: int, **more) -> dict:
        """Returns the time per step and its share of the limit set by memory bandwidth."""
        needed = bytes_per_step(self.plt, batch, context, 1 if loops == LLAMA else loops)
        limit = needed / self.hardware.bytes_per_second
        return {
            "loops": loops,
            "batch": batch,
            "context": context,
            "ms": round(1e3 * seconds, 3),
            "tokens_per_second": round(batch / seconds, 1),
            "share_of_bandwidth": round(limit / seconds, 3),
            "peak_gb": peak_gb(self.stage.device),
            **more,
        }

    @torch.no_grad()
    def op_by_op(self, loops, batch: int, context: int, schedule: str = "together") -> dict:
        """Times the default cache without a graph, which shows the cost of launches."""
        model, arguments = self._arguments(loops, schedule)
        step = self._step(model, DynamicCache(config=model.config), batch, context, arguments)
        seconds = seconds_each(step, self.stage.device, 10, warm_up=3)
        return self.result(seconds, loops, batch, context, schedule=schedule)

    @torch.no_grad()
    def captured(self, loops, batch: int, context: int, schedule: str = "together") -> dict:
        """Times a static cache with the step captured in one CUDA graph."""
        model, arguments = self._arguments(loops, schedule)
        cache = StaticCache(config=model.config, max_cache_len=context + ROOM)
        step = self._step(model, cache, batch, context, arguments)
        replay = capture(step, self.stage.device)
        seconds = seconds_each(replay, self.stage.device, 30, warm_up=3)
        return self.result(seconds, loops, batch, context, schedule=schedule)

    def _arguments(self, loops, schedule: str):
        model, arguments = self.model_of(loops)
        return model, arguments | ({} if loops == LLAMA else {"loop_schedule": schedule})

    def _step(self, model, cache, batch: int, context: int, arguments: dict) -> Callable[[], object]:
        """Makes a decode step after `context` tokens. The cache is random after 100 of them: only sizes matter."""
        prompt = torch.randint(model.config.vocab_size, (batch, min(context, 100)), device=self.stage.device)
        arguments = arguments | {CACHE_NAME: cache, "use_cache": True, "logits_to_keep": 1}
        model(prompt, **arguments)
        for layer in cache.layers:
            if isinstance(cache, StaticCache):
                layer.cumulative_length.fill_(context)
                layer.keys.normal_()
                layer.values.normal_()
            else:
                shape = (*layer.keys.shape[:2], context, layer.keys.shape[3])
                layer.keys, layer.values = (layer.keys.new_empty(shape).normal_() for _ in range(2))
        token = prompt[:, :1].clone()
        return lambda: model(token, **arguments).logits

    def generated(self, loops, batch: int, context: int, variant: str = "") -> dict:
        """
        Times compiled `generate()`, and the compiled step alone, queued without waiting for its result. `kernels` has
        the number of kernels per step, and microseconds per step of the longest ones. `variant` is one of `VARIANTS`.
        """
        model, arguments = self.model_of(loops)
        device, tokens = self.stage.device, 6 if self.stage.smoke else 40
        torch._dynamo.reset()
        prompt = torch.randint(model.config.vocab_size, (batch, context), device=device)
        cache = StaticCache(config=model.config, max_cache_len=context + ROOM)
        clock = Clock(device, skip=4)  # the first steps compile and record the graph
        with VARIANTS[variant](), _Steps(model) as steps:
            start = time.perf_counter()
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=4 + tokens,
                do_sample=False,
                pad_token_id=0,
                compile_config=compile_config(self.stage, "reduce-overhead"),
                stopping_criteria=[clock],
                **{CACHE_NAME: cache},
                **arguments,
            )
            synchronize(device)
            end = time.perf_counter()
        with torch.no_grad():
            seconds = seconds_each(steps.again, device, tokens, warm_up=3)
            kernels = kernels_of(steps.again, device)
        per_token = round(1e3 * (end - clock.started) / tokens, 3)
        more = {"ms_in_generate": per_token, "compiling": round(clock.started - start, 1), "kernels": kernels}
        return self.result(seconds, loops, batch, context, **more)


@contextlib.contextmanager
def fused_gate() -> Iterator[None]:
    """
    Computes the gates of the few cells of a step as sums of products, which a compiler fuses with the norm before them.
    A matrix product with 40 columns takes two or three kernels.
    """
    forward = ResidualGate.forward

    def summed(self, states_BND: torch.Tensor) -> torch.Tensor:
        products = states_BND[:, :, None].float() * self.weight.float()
        return torch.sigmoid(products.sum(-1) + self.bias.float()).to(states_BND.dtype)

    ResidualGate.forward = lambda self, states: (summed if states.shape[1] < 8 else forward)(self, states)
    try:
        yield
    finally:
        ResidualGate.forward = forward


def combined_kernels() -> contextlib.AbstractContextManager:
    """Lets PyTorch's compiler put independent small kernels into one."""
    return torch._inductor.config.patch(combo_kernels=True)


@contextlib.contextmanager
def both() -> Iterator[None]:
    with fused_gate(), combined_kernels():
        yield


VARIANTS = {
    "": contextlib.nullcontext,
    "combined kernels": combined_kernels,
    "combined kernels, fused gate": both,
}


class Clock(StoppingCriteria):
    """Reads the time after `skip` tokens; never stops the generation."""

    def __init__(self, device: torch.device, skip: int):
        self.device = device
        self.left = skip

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        if self.left == 0:
            synchronize(self.device)
            self.started = time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Steps:
    """Records the last compiled step of `generate()`, to repeat it."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        get_compiled_call = type(self.model).get_compiled_call

        def keep(config):
            call = get_compiled_call(self.model, config)

            def step(**kwargs):
                self.last = (call, kwargs)
                return call(**kwargs)

            return step

        self.model.get_compiled_call = keep
        return self

    def __exit__(self, *_):
        del self.model.get_compiled_call

    def again(self):
        call, kwargs = self.last
        return call(**kwargs)


def kernels_of(step: Callable[[], object], device: torch.device, count: int = 5, most: int = 40) -> dict:
    """Returns per step: the number of kernels, their total time, and [runs, microseconds] of the longest ones."""
    if device.type != "cuda":
        return {}
    synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(count):
            step()
        synchronize(device)
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    totals: dict[str, list[float]] = {}
    for event in events:  # long names may begin alike
        runs, microseconds = totals.get(event.key[:160], (0, 0))
        totals[event.key[:160]] = [runs + event.count / count, microseconds + event.self_device_time_total / count]
    result = {"runs": sum(event.count for event in events) / count}
    result["microseconds"] = round(sum(event.self_device_time_total for event in events) / count)
    longest = sorted(totals.items(), key=lambda item: -item[1][1])[:most]
    return result | {name: [runs, round(microseconds, 1)] for name, (runs, microseconds) in longest}


def capture(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Returns a function that replays the step from one CUDA graph; on a CPU, the step itself."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay(_keeps_alive=output):
        graph.replay()

    return replay


def run(stage: Stage) -> None:
    decoding = Decoding(stage)
    stage.result["hardware"] = vars(decoding.hardware)
    short, long = (40, 80) if stage.smoke else (512, 16384)
    few, many = (2, 3) if stage.smoke else (8, 32)
    generated, captured, op_by_op = decoding.generated, decoding.captured, decoding.op_by_op

    def case(way, loops, batch, context, *more, seconds=6):
        name = " ".join([way.__name__, f"R={loops}", f"batch={batch}", f"context={context}", *more])
        stage.run(name, way, loops, batch, context, *more, seconds=seconds)

    if stage.smoke:  # the compiler is slow, and two cases are enough to test the calls
        case(generated, 1, 1, short)
        case(generated, 2, 1, short, "combined kernels, fused gate")
    else:
        compiled: list[tuple] = [(loops, 1, short) for loops in (1, 2, LLAMA, 4, 3)]
        compiled += [(loops, batch, short) for batch in (few, many) for loops in (1, 2)]
        compiled += [(loops, 1, long) for loops in (1, 2)]
        compiled += [(loops, 1, short, "combined kernels") for loops in (2, 1)]
        compiled += [(2, 1, short, "combined kernels, fused gate")]
        for arguments in compiled:
            case(generated, *arguments, seconds=25)
    for loops in (1, 2, 4, LLAMA, 3):
        case(captured, loops, 1, short)
    for batch in (few, many):
        for loops in (1, 2, 4, LLAMA):
            case(captured, loops, batch, short)
    for loops in (2, 4):
        case(captured, loops, 1, short, "sequence")
    for batch in (1, few, many):
        for loops in (1, 2, 4, LLAMA) if batch == 1 else (1, 2, LLAMA):
            case(captured, loops, batch, long)
    for context in (short, long):
        for loops in (1, 2, 4, LLAMA):
            case(op_by_op, loops, 1, context)
