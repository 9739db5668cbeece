# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`demo`: a page in the browser that compares numbers of loops."""

from typing import Annotated

import typer

from .options import Device, DtypeOption, MaxNewTokens, Model, Revision
from .scripts import naming_extra


def demo(
    path: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    max_new_tokens: MaxNewTokens = 64,
    dtype: DtypeOption = None,
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Open a playground in the browser: the same prompt with one to four loops, side by side."""
    with naming_extra("demo"):
        import greenlet  # noqa: F401 (measures speeds)

        from .playground import page

    from ..conversion.loading import load_model

    model, tokenizer = load_model(path, revision, dtype and dtype.value, device)
    page.launch(page.build(model, tokenizer, path, max_new_tokens), host, port)
