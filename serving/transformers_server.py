# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Adds to Transformers' server what it lacks: bounded replies, checks of request bodies, and the list of models.

* Prompt plus reply cannot exceed the model's maximum or the requested number of tokens. A longer prompt gets a 400. A
  reply that reaches the limit ends with `finish_reason` "length".
* A reply ends at the next token if its client hangs up or the server is told to stop.
* An invalid field gets a 400 that names the field. A chat request without a chat template gets a 400 too.
* `/v1/models` lists the served model. Older versions of Transformers list the Hub's cache instead.

It replaces two classes: `GenerateManager` of Transformers' server, and `uvicorn.Server`, which receives the finished
app and handles signals.
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


SECONDS_TO_STOP = 10  # for unfinished replies after a signal
_stopping = threading.Event()
_hung_up: ContextVar[threading.Event | None] = ContextVar("hung_up", default=None)


def install(max_length: int | None = None, model: str | None = None) -> None:
    """
    Bounds replies by `max_length` tokens or the model's maximum. `/v1/models` lists `model`, if given. Call this before
    the server is created.
    """

    class Manager(BoundedGenerateManager):
        max_tokens = max_length

    class NamedServer(Server):
        model_name = model

    utils.GenerateManager = Manager
    uvicorn.Server = NamedServer  # type: ignore[misc]


class Stop(StoppingCriteria):
    """Ends a reply that nobody is waiting for."""

    def __init__(self, hung_up: threading.Event | None):
        self.hung_up = hung_up

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs) -> torch.Tensor:
        is_over = _stopping.is_set() or (self.hung_up is not None and self.hung_up.is_set())
        return torch.full((len(input_ids),), is_over, device=input_ids.device)


class BoundedGenerateManager(utils.GenerateManager):
    """Transformers' `model.generate()` in a thread, with bounded replies."""

    max_tokens: int | None = None

    def generate_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
        inputs = self._bounded(model, inputs, gen_config)
        return super().generate_streaming(model, processor, inputs, gen_config, *args, **kwargs)

    async def generate_non_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
        inputs = self._bounded(model, inputs, gen_config)
        return await super().generate_non_streaming(model, processor, inputs, gen_config, *args, **kwargs)

    def _bounded(self, model, inputs, gen_config) -> dict:
        """
        Returns the arguments of `generate()` with a stopping criterion, and sets the limit in this request's
        `gen_config`. Raises ValueError if the prompt leaves no room for a reply.
        """
        limit = min(model.config.max_position_embeddings, self.max_tokens or model.config.max_position_embeddings)
        prompt = inputs["input_ids"].shape[-1]
        if not 0 < prompt < limit:
            raise ValueError(
                f"The prompt has {prompt} tokens. It must have at least one, and prompt plus reply at most {limit}."
            )
        if gen_config.max_new_tokens is not None:
            gen_config.max_new_tokens = min(gen_config.max_new_tokens, limit - prompt)
        elif gen_config.max_length is not None:
            gen_config.max_length = min(gen_config.max_length, limit)
        return {**inputs, "stopping_criteria": StoppingCriteriaList([Stop(_hung_up.get())])}


class Server(uvicorn.Server):
    """Runs the app behind `Guard`, and ends replies when the server is told to stop."""

    model_name: str | None = None

    def __init__(self, config: uvicorn.Config):
        _stopping.clear()
        config.app.add_exception_handler(ValueError, _refuse)  # type: ignore[union-attr]
        config.app = Guard(config.app, self.model_name)
        if config.timeout_graceful_shutdown is None:
            config.timeout_graceful_shutdown = SECONDS_TO_STOP
        super().__init__(config)

    def handle_exit(self, *args) -> None:
        _stopping.set()
        super().handle_exit(*args)


async def _refuse(request, error: ValueError) -> JSONResponse:
    """Answers with a 400 if the template or `generate()` raises ValueError."""
    if isinstance(error, ValidationError):  # concerns a response, not a request
        raise error
    return refusal(str(error))


def refusal(message: str, field: str | None = None) -> JSONResponse:
    """Returns an error response in the format of OpenAI's API."""
    error = {"message": message, "type": "invalid_request_error", "param": field, "code": None}
    return JSONResponse({"error": error}, status_code=400)


def list_of(model: str) -> JSONResponse:
    """Returns the response of `/v1/models`, in the format of OpenAI's API."""
    entry = {"id": model, "object": "model", "created": 0, "owned_by": "local"}
    return JSONResponse({"object": "list", "data": [entry]})


class Guard:
    """
    An ASGI app in front of another one. It checks request bodies, lists the model, and notices clients that hang up.
    """

    def __init__(self, app, model: str | None = None):
        self.app, self.model = app, model

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", "/v1/models") and self.model:
            await list_of(self.model)(scope, receive, send)
            return
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
        """Runs the app with the complete body, and tells it when the client disconnects."""
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
