# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The playground's page, made with Gradio. It works offline and sends nothing to anyone."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported

import gradio as gr

from ...training.samples import read_prompts
from . import markup
from .compare import complete, encode, measure_speeds


CSS = Path(__file__).with_name("page.css")
LOOPS = [1, 2, 3, 4]
COMPLETION, CHAT = "Continue the text", "Chat"
SYSTEM_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
SYSTEM_MONO = ["ui-monospace", "Consolas", "monospace"]
THEME = gr.themes.Default(primary_hue="indigo", font=SYSTEM_FONTS, font_mono=SYSTEM_MONO)


def build(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    new_tokens: int = 64,
    prompt: str | None = None,
) -> gr.Blocks:
    """
    Returns the page for a model, with `prompt` filled in. Chat is offered if the tokenizer has a chat template; if not,
    there are examples of prompts, and the first is the default.
    """
    trained = model.config.plt_num_loops
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type.upper()
    can_chat = tokenizer.chat_template is not None
    modes = [CHAT, COMPLETION] if can_chat else [COMPLETION]
    examples = [] if can_chat else read_prompts()[:5]
    if prompt is None:
        prompt = examples[0] if examples else ""

    def run(prompt: str, mode: str, loops: list[int], count: int) -> Iterator[str]:
        """Yields the comparison after each completion."""
        try:
            loops = check_loops(loops)
            ids = encode(tokenizer, prompt, mode == CHAT)
            done = []
            yield markup.comparison(done, loops, trained)
            for index, num_loops in enumerate(loops, 1):
                done.append(complete(model, tokenizer, ids, num_loops, int(count)))
                yield markup.comparison(done, loops[index:], trained)
        except (ValueError, TimeoutError, MemoryError) as problem:
            yield markup.error(problem)

    def measure(prompt: str, mode: str, loops: list[int]) -> str:
        try:
            speeds = measure_speeds(model, encode(tokenizer, prompt, mode == CHAT), check_loops(loops))
            return markup.speed_table(speeds, device)
        except (ValueError, TimeoutError, MemoryError) as problem:
            return markup.error(problem)

    with gr.Blocks(title="PLT playground", analytics_enabled=False) as page:
        gr.HTML(
            f'<div class="plt-head"><h1>PLT playground</h1><p>{markup.escape(name)}: '
            f"{model.num_parameters() / 1e6:,.1f}M parameters, trained for {markup.loops_text(trained)}. "
            "What does each further loop over the same layers change?</p></div>"
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                text = gr.Textbox(
                    label="Prompt",
                    lines=7,
                    max_lines=16,
                    value=prompt,
                    placeholder="Write a function that reads a file." if can_chat else "def read_lines(path):",
                    elem_id="prompt",
                )
            with gr.Column(scale=2, min_width=260):
                mode = gr.Radio(modes, value=modes[0], label="Mode", visible=can_chat, elem_id="mode")
                loops = gr.CheckboxGroup(LOOPS, value=LOOPS, label="Loops per token", elem_id="loops")
                count = gr.Slider(1, max(256, new_tokens), value=new_tokens, step=1, label="Tokens to write at most")
                with gr.Row():
                    run_button = gr.Button("Run", variant="primary", elem_id="run", min_width=100)
                    speed_button = gr.Button("Measure speed", elem_id="measure", min_width=100)
        if examples:
            gr.Examples([[example] for example in examples], text, label="Starts of Python files")
        result = gr.HTML(markup.WAITING, elem_id="result")
        speed = gr.HTML(elem_id="speed")
        # One job at a time: they share the model and would slow each other down.
        queue = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
        run_button.click(run, [text, mode, loops, count], result, **queue)
        speed_button.click(measure, [text, mode, loops], speed, **queue)
    return page


def check_loops(loops: list[int]) -> list[int]:
    """Returns the chosen numbers of loops in order. Raises ValueError if there are none."""
    if not loops:
        raise ValueError("No number of loops is chosen. Tick at least one.")
    return sorted(loops)


def start(page: gr.Blocks, host: str | None = None, port: int | None = None) -> str:
    """
    Starts to serve the page in the background and returns its address. By default, Gradio's environment variables set
    it, as on a Space. Raises ValueError if the port is not free.
    """
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            quiet=True,
            footer_links=[],
            theme=THEME,
            css_paths=CSS,
        )
    except OSError as problem:
        if port is None:
            raise
        raise ValueError(f"Port {port} is in use. Choose another with --port.") from problem
    return url


def launch(page: gr.Blocks, host: str | None = None, port: int | None = None) -> None:
    """Serves the page until Ctrl-C."""
    print(f"The playground is at {start(page, host, port)} (Ctrl-C ends it)", flush=True)
    page.block_thread()
