# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
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
