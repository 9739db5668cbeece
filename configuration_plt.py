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
import os
import reprlib
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError

from .compat_plt import CACHE_NAMES


# isort: split
# After `compat_plt`, which explains what is missing before these imports can fail.
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .loops_plt import ModelPath
from .peft_plt import add_peft_targets
from .pickling_plt import PicklesRemoteCode


if TYPE_CHECKING:  # Never runs. It makes the library copy and download all model code together with this file.
    from .heads_plt import IQuestPLTCoderForSequenceClassification


# Tells the library where to find each class when a model folder is loaded as remote code.
AUTO_MAP = {
    "AutoConfig": "configuration_plt.IQuestPLTCoderConfig",
    "AutoModel": "modeling_plt.IQuestPLTCoderModel",
    "AutoModelForCausalLM": "modeling_plt.IQuestPLTCoderForCausalLM",
    "AutoModelForQuestionAnswering": "heads_plt.IQuestPLTCoderForQuestionAnswering",
    "AutoModelForSequenceClassification": "heads_plt.IQuestPLTCoderForSequenceClassification",
    "AutoModelForTokenClassification": "heads_plt.IQuestPLTCoderForTokenClassification",
}
LOOP_ATTENTIONS = ("gated", "shared", "own", "joint")
MIXED_STATES = 4  # the number of earlier tokens whose states `plt_cross_loop_shift="mixed"` mixes
SHIFTS = {True: 1, False: 0, "learned": 1, "mixed": MIXED_STATES}  # how many tokens back a loop reads states
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
MAX_LOOPS = 1000  # each loop keeps a window of keys and values in every layer; published PLTs have at most four
MAX_LAYERS, MAX_HEAD_DIM, MAX_LABELS = 10_000, 65_536, 1_000_000  # the configuration builds lists of these lengths
MAX_INT = 2**63 - 1  # the largest integer in a tensor


class Kind(NamedTuple):
    """The values that a field accepts, in words and as a predicate."""

    words: str
    allows: Callable[[Any], bool]

    def or_none(self) -> "Kind":
        return Kind(f"{self.words}, or None", lambda value: value is None or self.allows(value))

    def check(self, name: str, value: Any) -> None:
        """Raises a `ValueError` that names the field and the accepted values if `value` is not one of them."""
        if not self.allows(value):
            raise ValueError(f"`{name}` must be {self.words}, got {reprlib.repr(value)}.")


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value) -> bool:
    # Very large integers cannot be converted to float.
    return (_is_int(value) and abs(value) <= MAX_INT) or (isinstance(value, float) and math.isfinite(value))


def _is_window(value) -> bool:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_int, value))
    return is_pair and 0 <= value[0] <= MAX_INT and value[1] == 0


def _is_token_id(value) -> bool:
    return _is_int(value) and 0 <= value <= MAX_INT


def _integer(least: int, most: int = MAX_INT) -> Kind:
    limit = "" if most == MAX_INT else f" and <= {most}"
    return Kind(f"an integer >= {least}{limit}", lambda value: _is_int(value) and least <= value <= most)


def _one_of(names: tuple[str, ...]) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


POSITIVE_INTEGER = _integer(1)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
SHIFT = Kind('true, false, "learned" or "mixed"', lambda value: isinstance(value, (bool, str)) and value in SHIFTS)
POSITIVE = Kind("a positive number", lambda value: _is_finite(value) and value > 0)
NOT_NEGATIVE = Kind("a finite number >= 0", lambda value: _is_finite(value) and value >= 0)
SCALE = Kind("a finite number or None (which means 1.0)", lambda value: value is None or _is_finite(value))
FACTORS = Kind("a list of positive numbers", lambda value: isinstance(value, list) and all(map(POSITIVE.allows, value)))
MAPPING = Kind("an object (a dict)", lambda value: isinstance(value, dict))
TEXTS = Kind("a list of strings", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
TOKEN_ID = Kind("a token id, an integer >= 0", _is_token_id)
TOKEN_IDS = Kind(
    "a token id, an integer >= 0, or a list of them",
    lambda value: _is_token_id(value) or (isinstance(value, list) and all(map(_is_token_id, value))),
)
DTYPE = Kind(
    'the name of a PyTorch dtype, such as "bfloat16"',
    lambda value: isinstance(getattr(torch, value, None) if isinstance(value, str) else value, torch.dtype),
)

FIELDS = {
    "vocab_size": POSITIVE_INTEGER,
    "hidden_size": POSITIVE_INTEGER,
    "intermediate_size": POSITIVE_INTEGER,
    "num_hidden_layers": _integer(1, MAX_LAYERS),
    "num_attention_heads": POSITIVE_INTEGER,
    "num_key_value_heads": POSITIVE_INTEGER,
    "head_dim": _integer(1, MAX_HEAD_DIM),
    "hidden_act": Kind(
        'the name of a Transformers activation function, such as "silu"',
        lambda value: isinstance(value, str) and value in ACT2FN,
    ),
    "max_position_embeddings": POSITIVE_INTEGER,
    "initializer_range": NOT_NEGATIVE,
    "rms_norm_eps": POSITIVE,
    "use_cache": FLAG,
    "pad_token_id": TOKEN_ID.or_none(),
    "bos_token_id": TOKEN_ID.or_none(),
    "eos_token_id": TOKEN_IDS.or_none(),
    "tie_word_embeddings": FLAG,
    "rope_parameters": MAPPING.or_none(),
    "attention_bias": FLAG,
    "attention_dropout": Kind("a number >= 0 and < 1", lambda value: _is_finite(value) and 0 <= value < 1),
    "mlp_bias": FLAG,
    "plt_num_loops": _integer(1, MAX_LOOPS),
    "plt_window_size": Kind("`[left, 0]` with an integer left >= 0 (the model is causal)", _is_window),
    "plt_emb_scale": SCALE,
    "plt_hidden_scale": SCALE,
    "plt_normalize_per_loop": FLAG,
    "plt_gate_use_hidden_states": FLAG,
    "plt_cross_loop_shift": SHIFT,
    "plt_loop_attention": _one_of(LOOP_ATTENTIONS),
    # Fields of every configuration in the library:
    "dtype": DTYPE.or_none(),
    "architectures": TEXTS.or_none(),
    "id2label": MAPPING.or_none(),
    "label2id": MAPPING.or_none(),
    "output_hidden_states": FLAG.or_none(),
    "return_dict": FLAG.or_none(),
    "is_encoder_decoder": FLAG,
    "chunk_size_feed_forward": _integer(0),
}
# Keys of a config.json that are stored under another name or inside `rope_parameters`.
OTHER_KEYS = {
    "torch_dtype": DTYPE.or_none(),
    "num_labels": _integer(0, MAX_LABELS),
    "rope_scaling": MAPPING.or_none(),
    "rope_theta": POSITIVE,
    "partial_rotary_factor": POSITIVE.or_none(),
    "original_max_position_embeddings": POSITIVE_INTEGER.or_none(),
}
ROPE_FIELDS = {
    "rope_theta": POSITIVE,
    "factor": POSITIVE.or_none(),
    "partial_rotary_factor": POSITIVE.or_none(),
    "original_max_position_embeddings": POSITIVE_INTEGER.or_none(),
    "attention_factor": NOT_NEGATIVE.or_none(),
    "beta_fast": POSITIVE.or_none(),
    "beta_slow": POSITIVE.or_none(),
    "mscale": NOT_NEGATIVE.or_none(),
    "mscale_all_dim": NOT_NEGATIVE.or_none(),
    "truncate": FLAG.or_none(),
    "low_freq_factor": POSITIVE.or_none(),
    "high_freq_factor": POSITIVE.or_none(),
    "short_factor": FACTORS.or_none(),
    "long_factor": FACTORS.or_none(),
}


# Not @strict: its errors are not ValueErrors.  # trf-ignore: TRF010
class IQuestPLTCoderConfig(PicklesRemoteCode, PreTrainedConfig):
    r"""
    Configuration of a Llama-style decoder whose layers run `plt_num_loops` times per token. The defaults match the
    configuration class of the released checkpoint, because checkpoints may omit keys and rely on them.

    Notation (arXiv 2510.24824, arXiv 2606.18023): `E_i` is the embedding of token `i`, `H^r_i` its state after loop
    `r`, `g` the gate, `a` the output of an attention head.

    Args:
        plt_num_loops (`int`, *optional*, defaults to 2):
            Number of loops `R`, from 1 to 1000. `R = 1` is exactly a Llama decoder. Can be overridden per call
            (`num_loops=`).
        plt_window_size (`list[int]`, *optional*, defaults to `[64, 0]`):
            `[left, 0]`: in loops `r >= 1`, the local branch of token `i` sees its own loop's keys `j` with
            `0 <= i - j <= left`, which is `left + 1` keys including its own.
        plt_emb_scale (`float`, *optional*):
            Factor on the embedding in the input of loops `r >= 1`:
            `x^r_i = plt_emb_scale * E_i + plt_hidden_scale * H^{r-1}_{i-1}`. `None` means 1. Loop 0 takes `E_i` as is.
        plt_hidden_scale (`float`, *optional*):
            Factor on the fed-back state in that formula. `None` means 1.
        plt_normalize_per_loop (`bool`, *optional*, defaults to `True`):
            Whether to apply the final RMSNorm after every loop, so that the fed-back state is normed:
            `H^r = RMSNorm_final(x^r)`. It is always applied after the last loop.
        plt_gate_use_hidden_states (`bool`, *optional*, defaults to `False`):
            What the gate of head `h` reads. `True`: the residual stream, `g = sigmoid(W RMSNorm_gate(x) + b)`.
            `False`: the rotated query, `g_h = sigmoid(<q_h, w_h> + b_h)`. Either way, the output of a head in loops
            `r >= 1` is `g * a_global + (1 - g) * a_local`.
        plt_cross_loop_shift (`bool` or `str`, *optional*, defaults to `True`):
            A research control: which states `x^r_i` reads. `True`: `H^{r-1}_{i-1}`, that of the previous token.
            `False`: `H^{r-1}_i`, that of the same token. `"learned"`: a learned mean of these two per channel.
            `"mixed"`: a learned mean of the states of the last four tokens before `i`. With `False` and `"learned"`,
            the loops of a token depend on each other, so decoding runs them in sequence.
        plt_loop_attention (`str`, *optional*, defaults to `"gated"`):
            A research control: what loops `r >= 1` attend to. `"gated"`: loop 0's keys and a window of their own keys,
            mixed by the gate. `"shared"`: only loop 0's keys. `"own"`: only their own keys, up to
            `max_position_embeddings` of them, with one cache per loop. `"joint"`: the keys of `"gated"` in one softmax.
            The last three do not use the gates.
        rope_parameters (`dict`, *optional*):
            `{"rope_type": ..., "rope_theta": ..., ...}`. The older pair `rope_theta`, `rope_scaling` also works.

    The other arguments are those of [`~transformers.LlamaConfig`].

    Raises:
        ValueError: if a field has an invalid value. The message names the field and the accepted values.
    """

    model_type = "iquestpltcoder"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [*CACHE_NAMES]
    attribute_map: ClassVar[dict[str, str]] = {"num_loops": "plt_num_loops"}  # the name of the call argument
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
    plt_cross_loop_shift: bool | str = True
    plt_loop_attention: str = "gated"

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.pad_token_id == -1:  # some configurations write -1 for "none"
            self.pad_token_id = None
        # Check the fields before computing anything from them. `head_dim` comes last because it may be computed.
        for name, kind in OTHER_KEYS.items():
            if name in kwargs:
                kind.check(name, kwargs[name])
        self._check_fields(FIELDS.keys() - {"head_dim"})
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

    def to_dict(self) -> dict[str, Any]:
        """Like the library's. PEFT calls it just before looking up which layers to adapt."""
        add_peft_targets(self.model_type)
        return super().to_dict()

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Like the library's, but writes an `auto_map` so that every Auto class loads the folder as remote code."""
        own = {  # keeps entries of user classes whose file is in this folder, not those of the folder loaded from
            name: path
            for name, path in (getattr(self, "auto_map", None) or {}).items()
            if isinstance(path, str) and Path(save_directory, f"{path.rpartition('.')[0]}.py").is_file()
        }
        self.auto_map = AUTO_MAP | own
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "IQuestPLTCoderConfig":
        """Like the library's. Given the path of another model's configuration, also takes its number of loops."""
        if isinstance(pretrained_model_name_or_path, str):
            kwargs.setdefault("name_or_path", pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def _name_or_path(self) -> str:
        path = vars(self).get("_name_or_path", "")
        return ModelPath(path, self.plt_num_loops) if path else path

    @_name_or_path.setter
    def _name_or_path(self, path: str):
        vars(self)["_name_or_path"] = str(path)  # type: ignore[index]

    @property
    def _attn_implementation_internal(self) -> str | None:
        return vars(self).get("_attn_implementation_internal", [None])[0]

    @_attn_implementation_internal.setter
    def _attn_implementation_internal(self, name: str | None):
        vars(self).setdefault("_attn_implementation_internal", [None])[0] = name  # type: ignore[attr-defined]

    def copy_with_num_loops(self, num_loops: int) -> "IQuestPLTCoderConfig":
        """Copies the configuration for a model on the same layers. Both copies share one attention kernel setting."""
        config = copy.deepcopy(self)
        config.plt_num_loops = self.check_num_loops(num_loops)
        vars(config)["_attn_implementation_internal"] = vars(self)["_attn_implementation_internal"]  # type: ignore[index]
        return config

    def __setattr__(self, name, value):
        # Older versions of the library check their own field types here.
        try:
            super().__setattr__(name, value)
        except StrictDataclassFieldValidationError as error:
            if name in FIELDS:
                FIELDS[name].check(name, value)
            raise ValueError(f"`{name}` cannot be {reprlib.repr(value)}.") from error

    @property
    def layer_types(self) -> list[str]:
        """The cache type of every layer. It makes `generate()` and `DynamicCache(config=...)` build a PLT cache."""
        return ["parallel_loop_attention"] * self.num_hidden_layers

    @property
    def loop_window(self) -> int:
        """The number of earlier keys that loops `r >= 1` keep for a token, besides the token's own."""
        windows = {"shared": 0, "own": self.max_position_embeddings}
        return windows.get(self.plt_loop_attention, self.plt_window_size[0])

    @property
    def loop_reach(self) -> int:
        """How many tokens back a loop reads the previous loop's states. 1 for the shift."""
        return SHIFTS[self.plt_cross_loop_shift]

    @property
    def loops_can_run_together(self) -> bool:
        """Whether the loops of one token are independent, because none reads that token's states."""
        return self.plt_cross_loop_shift in (True, "mixed")

    def validate_layer_type(self) -> None:
        """Does nothing: `layer_types` is derived, and the parent accepts only the library's own names."""

    def validate(self) -> None:
        """Runs all checks by name, since the parent would call its own `validate_layer_type`, not the one above."""
        self.validate_plt()
        for validator in PreTrainedConfig.__class_validators__:
            try:
                getattr(self, validator.__name__)()
            except KeyError as error:  # the library raises it for a missing rotary setting
                raise ValueError(f"Invalid configuration: {error.args[0]}") from error

    def validate_plt(self) -> None:
        """Checks every field the model uses. Raises a `ValueError` that names the field and the accepted values."""
        self._check_fields(FIELDS)
        self.plt_window_size = list(self.plt_window_size)
        if self.num_attention_heads % self.num_key_value_heads:  # type: ignore[operator]
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must be a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )
        if self.head_dim % 2:  # type: ignore[operator]
            raise ValueError(f"`head_dim` must be even for rotary embeddings, got {self.head_dim}.")
        self._check_rope()

    def _check_fields(self, names):
        for name, kind in FIELDS.items():
            if name in names:
                kind.check(name, getattr(self, name))

    def _check_rope(self):
        rope = self.rope_parameters or {}
        rope_type = rope.get("rope_type", "default")
        if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
            raise ValueError(
                f"Unknown rope type {reprlib.repr(rope_type)} in `rope_parameters`. Use one of {', '.join(ROPE_TYPES)}."
            )
        ROPE_FIELDS["rope_theta"].check("rope_theta", rope.get("rope_theta"))
        for name in rope.keys() & ROPE_FIELDS.keys():
            ROPE_FIELDS[name].check(f"rope_parameters[{name!r}]", rope[name])

    def check_num_loops(self, num_loops: int | None) -> int:
        """Returns `num_loops`, or the configured number if None. Raises ValueError if it is not in 1..MAX_LOOPS."""
        num_loops = self.plt_num_loops if num_loops is None else num_loops
        FIELDS["plt_num_loops"].check("num_loops", num_loops)
        return num_loops


__all__ = ["IQuestPLTCoderConfig"]
