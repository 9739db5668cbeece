# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM has a separate environment (`make test-vllm`). Without vLLM nothing here is collected."""

import importlib.util
import os


collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["*"]
# Must be set before vLLM is imported: runs engines in this process, where tests can inspect and change them.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

if not collect_ignore_glob:
    from llvmlite.binding import ffi

    # A second engine in one process inspects all modules, and fails on an object that has every attribute.
    ffi.lib._fntab["__dict__"] = {}
