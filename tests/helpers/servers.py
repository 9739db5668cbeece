# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Starts servers for a test."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request


COMMAND = [sys.executable, "-m", "iquest_plt.serving.transformers_cli"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until_healthy(server: subprocess.Popen, url: str) -> None:
    """Waits up to two minutes for an answer of `/health`. Fails if the process has ended."""
    for _ in range(240):
        assert server.poll() is None, "the server has stopped"
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1)
            break
        except OSError:
            time.sleep(0.5)


@contextlib.contextmanager
def serving(folder, *options, errors=None):
    """Starts a server, and yields its process and address."""
    port = free_port()
    environment = os.environ | {"HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    server = subprocess.Popen(
        [
            *COMMAND,
            "serve",
            folder,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--device",
            "cpu",
            "--dtype",
            "float32",
            *options,
        ],
        env=environment,
        stderr=errors,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(server, url)
        yield server, url
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) in (0, 1, -signal.SIGINT)  # typer answers an interrupt with 1
    finally:
        server.kill()
