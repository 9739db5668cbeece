# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What Transformers' server lacks: requests that end, and bodies that are checked.

* Prompt and reply together have no more tokens than the model takes, or than asked for. A prompt that is longer is
  answered with 400; a reply ends with `finish_reason` "length".
* A reply ends at the next token when its client has hung up, or when the server is told to stop.
* A field that cannot be used is answered with 400 and its name, and so is a chat where there is no chat template.

It takes the place of two classes: `GenerateManager` of Transformers' server, and `uvicorn.Server`, which is given the
finished app and hears of signals.
"""

import asyncio
import json
import threading
from contextvars import ContextVar

import torch
import uvicorn
from pydantic import ValidationError
from starlette.responses import JSONResponse
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cli.serving import utils

from .request_checks import find_problem, without_nulls


SECONDS_TO_STOP = 10  # for replies that are being made, after a signal
_stopping = threading.Event()
_hung_up: ContextVar[threading.Event | None] = ContextVar("hung_up", default=None)


def install(max_length: int | None = None) -> None:
    """Before the server is made: bounds what it will generate, by `max_length` tokens or the model's own length."""

    class Manager(BoundedGenerateManager):
        max_tokens = max_length

    utils.GenerateManager = Manager
    uvicorn.Server = Server  # type: ignore[misc]


class Stop(StoppingCriteria):
    """Ends a reply that nobody waits for any more."""

    def __init__(self, hung_up: threading.Event | None):
        self.hung_up = hung_up

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs) -> torch.Tensor:
        is_over = _stopping.is_set() or (self.hung_up is not None and self.hung_up.is_set())
        return torch.full((len(input_ids),), is_over, device=input_ids.device)


class BoundedGenerateManager(utils.GenerateManager):
    """Transformers' `model.generate()` in a thread, with an end."""

    max_tokens: int | None = None

    def generate_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
        inputs = self._bounded(model, inputs, gen_config)
        return super().generate_streaming(model, processor, inputs, gen_config, *args, **kwargs)

    async def generate_non_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
        inputs = self._bounded(model, inputs, gen_config)
        return await super().generate_non_streaming(model, processor, inputs, gen_config, *args, **kwargs)

    def _bounded(self, model, inputs, gen_config) -> dict:
        """
        The arguments of `generate()` that end it; `gen_config`, which is this request's own, gets the bound. Raises
        ValueError if the prompt leaves no room for a reply.
        """
        limit = min(model.config.max_position_embeddings, self.max_tokens or model.config.max_position_embeddings)
        prompt = inputs["input_ids"].shape[-1]
        if not 0 < prompt < limit:
            raise ValueError(
                f"The prompt has {prompt} tokens. It must have at least one, and with its reply no more than {limit}."
            )
        if gen_config.max_new_tokens is not None:
            gen_config.max_new_tokens = min(gen_config.max_new_tokens, limit - prompt)
        elif gen_config.max_length is not None:
            gen_config.max_length = min(gen_config.max_length, limit)
        return {**inputs, "stopping_criteria": StoppingCriteriaList([Stop(_hung_up.get())])}


class Server(uvicorn.Server):
    """Runs the app behind `Guard`, and ends replies when it is told to stop."""

    def __init__(self, config: uvicorn.Config):
        _stopping.clear()
        config.app.add_exception_handler(ValueError, _refuse)  # type: ignore[union-attr]
        config.app = Guard(config.app)
        if config.timeout_graceful_shutdown is None:
            config.timeout_graceful_shutdown = SECONDS_TO_STOP
        super().__init__(config)

    def handle_exit(self, *args) -> None:
        _stopping.set()
        super().handle_exit(*args)


async def _refuse(request, error: ValueError) -> JSONResponse:
    """What the template or `generate()` refuses."""
    if isinstance(error, ValidationError):  # of an answer, not of a request
        raise error
    return refusal(str(error))


def refusal(message: str, field: str | None = None) -> JSONResponse:
    """As OpenAI's API words it."""
    error = {"message": message, "type": "invalid_request_error", "param": field, "code": None}
    return JSONResponse({"error": error}, status_code=400)


class Guard:
    """An ASGI app that checks the bodies of another one's requests, and notices clients that hang up."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        chunks, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
        raw = b"".join(chunks)
        if scope["path"] in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
            try:
                body = json.loads(raw)
            except (ValueError, RecursionError):
                body = None
            problem = find_problem(scope["path"], body)
            if problem is not None:
                await refusal(problem.message, problem.field)(scope, receive, send)
                return
            raw = json.dumps(without_nulls(body)).encode()
        await self._run(raw, scope, receive, send)

    async def _run(self, raw: bytes, scope, receive, send) -> None:
        """The app, which is given the body at once, and the end of the connection when that comes."""
        messages, hung_up = asyncio.Queue(), threading.Event()
        messages.put_nowait({"type": "http.request", "body": raw, "more_body": False})

        async def watch() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                pass
            hung_up.set()
            messages.put_nowait(message)

        token, watcher = _hung_up.set(hung_up), asyncio.create_task(watch())
        try:
            await self.app(scope, messages.get, send)
        finally:
            watcher.cancel()
            _hung_up.reset(token)
