# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The key/value cache of the Parallel Loop Transformer. `cache_layers_plt.py` describes its contents."""

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from .cache_layers_plt import LAYER_TYPE, LoopStates, PLTCacheLayer
from .cache_quantized_plt import QUANTIZED_LAYERS
from .cache_static_plt import PLTStaticCacheLayer


def _make_layers(count: int, quantization: dict | None) -> list[LoopStates]:
    if quantization is None:
        return [PLTCacheLayer() for _ in range(count)]
    if not isinstance(quantization, dict):
        raise ValueError(f"`quantization` must be a dict such as {{'backend': 'quanto'}}, got {quantization!r}.")
    options = {"backend": "quanto"} | quantization
    backend = options.pop("backend")
    if backend not in QUANTIZED_LAYERS:
        raise ValueError(f"Unknown cache quantization {backend!r}. Use one of {', '.join(QUANTIZED_LAYERS)}.")
    try:
        return [QUANTIZED_LAYERS[backend](**options) for _ in range(count)]
    except TypeError as error:
        raise ValueError(f"The cache quantization {backend!r} does not accept these options: {error}") from error


class PLTCache(Cache):
    """
    A PLT cache to create and pass yourself. `generate()` and `DynamicCache(config=config)` make the same layers.

    Args:
        config ([`IQuestPLTCoderConfig`]): the model's configuration.
        num_loops (`int`, *optional*): the number of loops it serves; `config.plt_num_loops` by default.
        quantization (`dict`, *optional*): quantizes the keys and values of loop 0, the part that grows. Takes
            `{"backend": "quanto" | "hqq" | "fp8"}` and the options of [`~transformers.QuantizedCache`]. A `"quanto"`
            cache cannot be copied, because the library's `"quanto"` tensors cannot be.

    Example:

    ```python
    >>> cache = PLTCache(model.config, num_loops=3)
    >>> output = model.generate(**inputs, cache=cache, num_loops=3)
    >>> cache.nbytes
    ```
    """

    def __init__(self, config, num_loops: int | None = None, quantization: dict | None = None):
        self.num_loops = config.check_num_loops(num_loops)
        super().__init__(layers=_make_layers(config.num_hidden_layers, quantization))
        for layer in self.layers:
            layer.set_num_loops(self.num_loops, config.loop_window)

    @property
    def nbytes(self) -> int:
        """Size of all stored states in bytes, without the spare room for the next tokens."""
        return sum(layer.nbytes for layer in self.layers)


def check_cache(cache: Cache, config: PreTrainedConfig, num_loops: int, batch: int, has_mask: bool) -> None:
    """Raises ValueError if `cache` has no PLT layers, or belongs to another model, number of loops or batch size."""
    layers = getattr(cache, "layers", None)
    # Checks the layer type, not the class: remote code and the installed package define separate classes.
    if not layers or any(getattr(layer, "layer_type", None) != LAYER_TYPE for layer in layers):
        raise ValueError(
            f"A PLT model cannot use this {type(cache).__name__}: it has no room for the loops' windows and carries. "
            "Pass `PLTCache(model.config)`, `DynamicCache(config=model.config)` or no cache. PEFT's prefix tuning "
            "creates a cache of keys and values only. Use its `PromptTuningConfig`, `PromptEncoderConfig` or "
            "`LoraConfig` instead."
        )
    if len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"This cache has {len(layers)} layers, but the model has {config.num_hidden_layers}. Start a new cache."
        )
    for layer in layers:
        layer.check_num_loops(num_loops, config.loop_window)
    keys, carries = layers[0].keys, layers[0].carries
    rows = batch
    if carries is not None:
        rows = carries.shape[1]
    elif keys is not None and keys.numel():
        rows = keys.shape[0]
    if rows != batch:
        raise ValueError(
            f"This cache holds {rows} rows, but the new tokens have {batch}. Use "
            "`cache.batch_repeat_interleave` or `cache.batch_select_indices`, or start a new cache."
        )
    if layers[0].has_padding and not has_mask:
        raise ValueError("This cache holds padding. Pass the `attention_mask` of the cached and the new tokens.")


def prepare_cache(cache: Cache, config: PreTrainedConfig, num_loops: int) -> None:
    """Prepares a checked cache for a forward pass of `num_loops` loops."""
    for layer in cache.layers:
        layer.set_num_loops(num_loops, config.loop_window)


__all__ = ["PLTCache", "PLTCacheLayer", "PLTStaticCacheLayer"]
