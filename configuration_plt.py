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
"""Configuration of the Parallel Loop Transformer (PLT) as released with LoopCoder-V2."""

import copy
import math
from dataclasses import field
from typing import ClassVar

from .compat_plt import CACHE_NAMES


# isort: split
# After `compat_plt`, which says what is missing where this import would fail.
from transformers.configuration_utils import PreTrainedConfig

from .loops_plt import ModelPath


LOOP_ATTENTIONS = ("gated", "shared", "own")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


# Not @strict: its errors are no ValueErrors.  # trf-ignore: TRF010
class IQuestPLTCoderConfig(PreTrainedConfig):
    r"""
    A Llama-style decoder whose layers run `plt_num_loops` times per token. The defaults are those of the released
    checkpoint's own configuration class: a checkpoint that omits a key relies on them.

    Notation (arXiv 2510.24824, arXiv 2606.18023): `E_i` is the embedding of token `i`, `H^r_i` its state after loop
    `r`, `g` the gate, `a` the output of an attention head.

    Args:
        plt_num_loops (`int`, *optional*, defaults to 2):
            Number of loops `R >= 1`. `R = 1` is exactly a Llama decoder. Can be overridden per call (`num_loops=`).
        plt_window_size (`list[int]`, *optional*, defaults to `[64, 0]`):
            `[left, 0]`: in loops `r >= 1` the local branch of token `i` sees its own loop's keys `j` with
            `0 <= i - j <= left`, that is `left + 1` keys, itself included.
        plt_emb_scale (`float`, *optional*):
            Factor on the embedding in the input of loops `r >= 1`:
            `x^r_i = plt_emb_scale * E_i + plt_hidden_scale * H^{r-1}_{i-1}`. `None` means 1. Loop 0 takes `E_i` as is.
        plt_hidden_scale (`float`, *optional*):
            Factor on the fed-back state in the same formula. `None` means 1.
        plt_normalize_per_loop (`bool`, *optional*, defaults to `True`):
            Whether the final RMSNorm is applied after every loop, so that the fed-back state is normed:
            `H^r = RMSNorm_final(x^r)`. After the last loop it always is.
        plt_gate_use_hidden_states (`bool`, *optional*, defaults to `False`):
            What the gate of head `h` reads. `True`: the residual stream, `g = sigmoid(W RMSNorm_gate(x) + b)`.
            `False`: the rotated query, `g_h = sigmoid(<q_h, w_h> + b_h)`. In both, the output of a head in loops
            `r >= 1` is `g * a_global + (1 - g) * a_local`.
        plt_cross_loop_shift (`bool`, *optional*, defaults to `True`):
            A control for research. `False` takes the shift out: `x^r_i` reads `H^{r-1}_i`, the state of the token
            itself. The loops of a token then wait for each other, and decoding runs them in sequence.
        plt_loop_attention (`str`, *optional*, defaults to `"gated"`):
            A control for research: what loops `r >= 1` attend to. `"gated"`: loop 0's keys and a window of their own,
            mixed by the gate. `"shared"`: loop 0's keys alone. `"own"`: their own loop's keys alone, up to
            `max_position_embeddings` of them, in a cache per loop. Gates are unused in the last two.
        rope_parameters (`dict`, *optional*):
            `{"rope_type": ..., "rope_theta": ..., ...}`. The older pair `rope_theta`, `rope_scaling` is read as well.

    The other arguments are those of [`~transformers.LlamaConfig`].

    Raises:
        ValueError: if a field does not describe a model that can be built, saying which and what is allowed.
    """

    model_type = "iquestpltcoder"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [*CACHE_NAMES]
    attribute_map: ClassVar[dict[str, str]] = {"num_loops": "plt_num_loops"}  # as the argument of a call is named
    default_theta = 500000.0
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.self_attn.plt_gate": "colwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 75904
    hidden_size: int = 5120
    intermediate_size: int = 27648
    num_hidden_layers: int = 14
    num_attention_heads: int = 40
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = field(default_factory=lambda: [2, 75864, 75869])
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    plt_num_loops: int = 2
    plt_window_size: list[int] | tuple[int, int] = field(default_factory=lambda: [64, 0])
    plt_emb_scale: float | None = None
    plt_hidden_scale: float | None = None
    plt_normalize_per_loop: bool = True
    plt_gate_use_hidden_states: bool = False
    plt_cross_loop_shift: bool = True
    plt_loop_attention: str = "gated"

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._require_positive_integers("hidden_size", "num_attention_heads", "num_key_value_heads")
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                    f"({self.num_attention_heads}) when `head_dim` is not given."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        kwargs.pop("layer_types", None)  # derived, see below
        num_loops = getattr(kwargs.get("name_or_path"), "plt_num_loops", None)  # from a `ModelPath`
        if num_loops is not None:
            self.plt_num_loops = num_loops
        super().__post_init__(**kwargs)
        self.validate()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As the library's; from the path of another model's configuration, with the number of loops of that model."""
        if isinstance(pretrained_model_name_or_path, str):
            kwargs.setdefault("name_or_path", pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def _name_or_path(self) -> str:
        path = vars(self).get("_name_or_path", "")
        return ModelPath(path, self.plt_num_loops) if path else path

    @_name_or_path.setter
    def _name_or_path(self, path: str):
        vars(self)["_name_or_path"] = str(path)

    @property
    def _attn_implementation_internal(self) -> str | None:
        return vars(self).get("_attn_implementation_internal", [None])[0]

    @_attn_implementation_internal.setter
    def _attn_implementation_internal(self, name: str | None):
        vars(self).setdefault("_attn_implementation_internal", [None])[0] = name

    def copy_with_num_loops(self, num_loops: int) -> "IQuestPLTCoderConfig":
        """A copy for a model on the same layers. They have one attention kernel, so the two configurations share it."""
        config = copy.deepcopy(self)
        config.plt_num_loops = self.check_num_loops(num_loops)
        vars(config)["_attn_implementation_internal"] = vars(self)["_attn_implementation_internal"]
        return config

    @property
    def layer_types(self) -> list[str]:
        """Every layer's cache layer type: with it `generate()` and `DynamicCache(config=...)` build PLT's cache."""
        return ["parallel_loop_attention"] * self.num_hidden_layers

    @property
    def loop_window(self) -> int:
        """How many keys before a token's own its loop keeps, in loops `r >= 1`."""
        windows = {"gated": self.plt_window_size[0], "shared": 0, "own": self.max_position_embeddings}
        return windows[self.plt_loop_attention]

    def validate_layer_type(self):
        """`layer_types` is derived, so there is nothing to check; the parent only knows the library's own names."""

    def validate(self):
        """Runs all checks. By name: the parent's own list would call its `validate_layer_type`, not the one above."""
        self.validate_plt()
        for validator in PreTrainedConfig.__class_validators__:
            try:
                getattr(self, validator.__name__)()
            except KeyError as error:  # the library's word for a missing rotary setting
                raise ValueError(f"Invalid configuration: {error.args[0]}") from error

    def validate_plt(self):
        """Checks every field the model is built from. Raises `ValueError` naming the field and what it may hold."""
        self._require_positive_integers(
            "vocab_size",
            "intermediate_size",
            "num_hidden_layers",
            "head_dim",
            "max_position_embeddings",
            "plt_num_loops",
        )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must be a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` must be even for rotary embeddings, got {self.head_dim}.")
        window = self.plt_window_size
        if (
            not isinstance(window, (list, tuple))
            or len(window) != 2
            or not all(_is_int(w) for w in window)
            or window[0] < 0
            or window[1] != 0
        ):
            raise ValueError(
                "`plt_window_size` must be `[left, 0]` with an integer left >= 0 (the model is causal), got "
                f"{window!r}."
            )
        self.plt_window_size = list(window)
        for name in ("plt_emb_scale", "plt_hidden_scale"):
            value = getattr(self, name)
            if value is not None and not _is_finite(value):
                raise ValueError(f"`{name}` must be a finite number or None (which means 1.0), got {value!r}.")
        for name in ("plt_normalize_per_loop", "plt_gate_use_hidden_states", "plt_cross_loop_shift"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be true or false, got {getattr(self, name)!r}.")
        if self.plt_loop_attention not in LOOP_ATTENTIONS:
            raise ValueError(
                f"`plt_loop_attention` must be one of {', '.join(LOOP_ATTENTIONS)}, got {self.plt_loop_attention!r}."
            )
        rope_theta = self.rope_parameters.get("rope_theta")
        if not _is_finite(rope_theta) or rope_theta <= 0:
            raise ValueError(f"`rope_theta` must be a positive number, got {rope_theta!r}.")
        rope_type = self.rope_parameters.get("rope_type", "default")
        if rope_type not in ROPE_TYPES:
            raise ValueError(
                f"Unknown rope type {rope_type!r} in `rope_parameters`: use one of {', '.join(ROPE_TYPES)}."
            )

    def check_num_loops(self, num_loops: int | None) -> int:
        """The number of loops to run: `num_loops`, or the configured one for None. Raises ValueError if not >= 1."""
        num_loops = self.plt_num_loops if num_loops is None else num_loops
        if not _is_int(num_loops) or num_loops < 1:
            raise ValueError(f"`num_loops` must be an integer >= 1, got {num_loops!r}.")
        return num_loops

    def _require_positive_integers(self, *names: str):
        for name in names:
            value = getattr(self, name)
            if not _is_int(value) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


__all__ = ["IQuestPLTCoderConfig"]
