# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM has an environment of its own (`make test-vllm`); without it nothing here is collected."""

import importlib.util
import os


collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["*"]
# Before vLLM is imported: engines in this process, where tests can look at them and change them.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

if not collect_ignore_glob:
    from llvmlite.binding import ffi

    # A second engine in one process looks into all modules, and stumbles over an object that has every attribute.
    ffi.lib._fntab["__dict__"] = {}
