# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Turns a SentencePiece BPE model into a `tokenizers.Tokenizer` with the same ids.

`convert(model_file)` and `convert_folder(folder)` return a tokenizer only after comparing its ids and decoded text with
SentencePiece's, on a built-in text in many scripts, on every piece and on all given lines. If they differ, both raise a
ValueError that names the line and segment.

For text with special tokens, the reference splits the text at the added tokens (the model's control and unknown pieces,
and all named special or added tokens), encodes each segment with SentencePiece, including the dummy prefix, and
concatenates the ids. User-defined symbols that are not named stay inside their segment, as in SentencePiece.

Why the ids are equal: among all neighbours whose concatenation is a piece, SentencePiece joins those with the best
score, leftmost first. The joins inside a piece's text do not depend on the surrounding text, so a piece is always made
from the same two parts: those joined last when the piece is encoded alone. One such merge for each reachable piece,
ordered by score, therefore does the same as SentencePiece.

Models without a character map (rule "identity", as in code models) are converted exactly. A map such as nmt_nfkc uses
`normalizers.Precompiled` and `NFC`, which give the same text except for rare sequences of combining marks: those not in
canonical order, those after a ligature, and for nfkc without nmt those after other characters that the map replaces.
For such text, only the compared lines are known to be equal.
"""

import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .spm_encoder import BYTE, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, SentencePieceEncoder


SPACE = "▁"
SEGMENT_END = "\ufdd0\ufdd1"  # no characters, so no text has them
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Compared in every conversion, in addition to each piece of the model.
PROBE = [
    *("", " ", "  ", "   x", "x   ", " a  b   c ", "\n", "\n\n", "\t", "\r\n", " \n ", "\x00", "a\x00b\x01\x7f\x80"),
    *("▁", "▁▁", "▁a", "a▁b", " ▁ a", "<0x0A>", "<0x41><0xFF>", "<s", "/s>", "<|", "|>", "<unk", "\ufffd", "\ufeffx"),
    "def f(x):\n    return x  # comment\n\n\tif x:\n\t\tpass\n        deep = {'a': [1, 2.5e-3, 0xFF]}\n",
    '#include <stdio.h>\r\nint main() { printf("%d\\n", 1 << 3); return 0; }\r\n',
    "0 1 12 123 1234 12345 3.14159 1,000,000 2026-11-22 v1.2.3 ٠١٢٣ ०१२ １２３ ²³ ½ Ⅷ",
    "The quick brown fox doesn't jump over the lazy dog's back. HTTPServerError camelCase snake_case CONST_1",
    "Größe, naïve café, señor, œuvre, Łódź, İstanbul, ijsland, smørrebrød, þorn, žluťoučký kůň, ế ở Việt Nam",
    "Η γρήγορη καφέ αλεπού, ὁ λόγος; Быстрая коричневая лиса, ёлка, їжак, љубав, Қазақ",
    "مرحبا بالعالم، كيف حالك؟ اللُّغَةُ العَرَبِيَّة ﷺ ﻻ שלום עולם, בְּרֵאשִׁית",
    "नमस्ते दुनिया क्षत्रिय বাংলা ভাষা தமிழ் మీరు ಕನ್ನಡ മലയാളം ਪੰਜਾਬੀ ગુજરાતી සිංහල",
    "你好，世界！中文沒有空格。日本語のテキスト、カタカナ ｶﾀｶﾅ ｶﾞ がぎぐ 全角ＡＢＣ　１２３ 한국어 문장 各 한",
    "สวัสดีชาวโลก ภาษาไทย น้ำ ລາວ မြန်မာ ខ្មែរ བོད་ཡིག አማርኛ ქართული Հայերեն ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ",
    "🙂 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ☎️ ©️ ™ ♥ ∑ ∫ √ ≠ → ⇒ ∀x∈ℝ 𝔘𝕟𝕚 𝟙 ﬁ ﬂ ① ㈱ ㎏ …",
    "e\u0301 a\u0308o\u0302\u0301 n\u0303 x\u0323\u0302 \u0301 z\u0335\u0336 \u1112\u1161\u11ab q\u0323\u0307",
    "a\u00a0b\u2003c\u2028d\u2029e\u200bf\u200cg\u200dh\u2060i\u00adj\u3000k\u0085l\u180em",
    "𐍈 𒀀 𓀀 𐤀 𠀀 \U0010ffff \ue000 \u0378 " + "ß" * 50 + " " * 40 + "x" + "\t" * 20 + "ab" * 300,
]


def convert(
    model_file: str | Path,
    special_tokens: Iterable[str] = (),
    added_tokens: Mapping[int, AddedToken] | None = None,
    lines: Iterable[str] = (),
) -> Tokenizer:
    """Returns the tokenizer of a SentencePiece model, after comparing the two.

    The arguments are those of `SentencePieceEncoder`. Raises ValueError if the file is not such a model, or if any ids
    differ.
    """
    return _convert(SentencePieceEncoder(model_file, special_tokens, added_tokens), lines)


def convert_folder(folder: str | Path, lines: Iterable[str] = ()) -> tuple[Tokenizer, dict]:
    """Returns the tokenizer of a folder with `tokenizer.model`, and its `tokenizer_config.json`.

    Added and named tokens come from the folder's `tokenizer_config.json`, `special_tokens_map.json` and
    `added_tokens.json`, if they exist. The config names the class PreTrainedTokenizerFast, whatever class and code the
    folder names, and keeps its `chat_template`. Raises ValueError like `convert`.
    """
    folder = Path(folder)
    config, names, legacy = (
        _read_json(folder / f"{name}.json") for name in ("tokenizer_config", "special_tokens_map", "added_tokens")
    )
    added = _declared(config, legacy)
    merged = config | names
    named = {name: _content(merged[name]) for name in NAMED_TOKENS if merged.get(name) is not None}
    special = list(named.values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = merged.get(key) or []
        if not isinstance(tokens, list | dict):
            raise ValueError(f"{folder}: {key} is {tokens!r}, not a list of tokens")
        special += map(_content, tokens.values() if isinstance(tokens, dict) else tokens)
    reference = SentencePieceEncoder(folder / "tokenizer.model", special, added)
    tokenizer = _convert(reference, lines)
    # Llama's own class adds <s> by default.
    adds_bos = bool(config.get("add_bos_token", str(config.get("tokenizer_class")).startswith("LlamaTokenizer")))
    adds_eos = bool(config.get("add_eos_token", False))
    _add_ends(
        tokenizer,
        named.get("bos_token", "<s>") if adds_bos else None,
        named.get("eos_token", "</s>") if adds_eos else None,
    )

    special = [token.content for _, token in sorted(reference.added_tokens.items()) if token.special]
    result = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "additional_special_tokens": [content for content in special if content not in named.values()],
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        "clean_up_tokenization_spaces": False,
    }
    kept = ("model_max_length", "padding_side", "truncation_side", "chat_template")
    return tokenizer, result | {key: config[key] for key in kept if key in config}


def _add_ends(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Adds these tokens around every text that is encoded with special tokens."""
    ends = [token for token in (bos, eos) if token is not None]
    if not ends:
        return
    ids = {token: tokenizer.token_to_id(token) for token in ends}
    if None in ids.values():
        raise ValueError(f"The tokenizer should add {' and '.join(ends)} to texts, but has no such token.")
    single, pair = ([*([bos] if bos else []), f"${name}", *([eos] if eos else [])] for name in "AB")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, *(f"{part}:1" for part in pair)], special_tokens=list(ids.items())
    )


def _read_json(file: Path) -> dict:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must contain a JSON object.")
    return content


def _declared(config: dict, legacy: dict) -> dict[int, AddedToken]:
    """Returns the added tokens of tokenizer_config.json and added_tokens.json by id."""
    added = {}
    try:
        for index, entry in config.get("added_tokens_decoder", {}).items():
            flags = {flag: bool(entry.get(flag, False)) for flag in ("special", "lstrip", "rstrip", "single_word")}
            added[int(index)] = AddedToken(entry["content"], **flags)
        for content, index in legacy.items():
            added.setdefault(int(index), AddedToken(content))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The added tokens do not have the format of Transformers: {error!r}") from error
    return added


def _content(token: str | dict) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise ValueError(f"The special token {token!r} is neither a string nor a token description.")
    return content


def _convert(reference: SentencePieceEncoder, lines: Iterable[str]) -> Tokenizer:
    merges = _merges(reference)
    tokenizer = _build(reference, merges)
    tokens = [*reference.user_defined, *(token.content for token in reference.added_tokens.values())]
    for name, texts in {
        "text of the probe": PROBE,
        "text with a token": (f"{token}x {token}{token} y{token} {token}\n" for token in tokens),
        "piece": (text.replace(SPACE, " ") for text, _, kind in reference.pieces if kind == NORMAL),
        "text of two pieces of one score": _ties(merges, reference),
        "line": lines,
    }.items():
        reference.check(tokenizer, texts, name)
    return tokenizer


def _build(reference: SentencePieceEncoder, merges: list[tuple[str, str]]) -> Tokenizer:
    """Builds the tokenizer, without comparing it."""
    symbols = _long_symbols(reference)
    vocab = {text: index for index, (text, _, _) in enumerate(reference.pieces)}
    vocab |= {token.content: index for index, token in reference.added_tokens.items()}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=next(text for text, _, kind in reference.pieces if kind == UNKNOWN),
            fuse_unk=True,
            byte_fallback=reference.byte_fallback,
            ignore_merges=bool(symbols),
        )
    )
    tokenizer.normalizer = _normalizer(reference.normalizer)
    if symbols:
        # Each symbol becomes a separate part, and is then encoded as a whole. The same would happen to a text between
        # two symbols that spells the name of a byte, so the second pattern splits off its first character.
        patterns = ["|".join(map(re.escape, symbols))]
        if any(kind == BYTE for _, _, kind in reference.pieces):
            patterns.append(r"\A<(?=0x[0-9A-F]{2}>\z)")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        )
    tokenizer.decoder = _decoder(reference)
    for _, token in sorted(reference.added_tokens.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _long_symbols(reference: SentencePieceEncoder) -> list[str]:
    """Returns the user-defined symbols that must be split out. Those of one character never merge anyway."""
    return [symbol for symbol in reference.user_defined if len(symbol) > 1]


def _merges(reference: SentencePieceEncoder) -> list[tuple[str, str]]:
    """Returns the merge that makes each reachable piece, best score first."""
    scores = {text: score for text, score, kind in reference.pieces if kind in (NORMAL, USER_DEFINED, UNUSED)}
    symbols = _long_symbols(reference)
    frozen = re.compile("|".join(map(re.escape, reference.user_defined)) or r"(?!)")
    merges = []
    for index, (text, score, kind) in enumerate(reference.pieces):
        # SentencePiece splits out user-defined symbols before it merges.
        if kind not in (NORMAL, UNUSED) or len(text) == 1 or frozen.search(text):
            continue
        if missing := {character for character in text if character not in scores}:
            raise ValueError(f"{reference.file}: the piece {text!r} contains {missing.pop()!r}, which is not a piece.")
        parts = _last_parts(text, scores)
        if not parts and symbols:  # between two symbols, the tokenizer would encode it as a whole
            raise ValueError(
                f"{reference.file}: SentencePiece never makes the piece {text!r}. This cannot be expressed together "
                f"with user-defined symbols like {symbols[0]!r}. Name those as special tokens."
            )
        if parts and kind == UNUSED:
            raise ValueError(f"{reference.file}: the piece {text!r} is marked unused, which is not supported.")
        if parts:
            merges.append((-score, index, parts))
    return [parts for _, _, parts in sorted(merges)]


def _last_parts(text: str, scores: Mapping[str, float]) -> tuple[str, str] | None:
    """Returns the two symbols that SentencePiece joins last to make `text`, or None if it never makes `text`."""
    parts = list(text)
    while len(parts) > 2:
        joined = [scores.get(left + right, -math.inf) for left, right in itertools.pairwise(parts)]
        best = max(joined)
        if best == -math.inf:
            return None
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _ties(merges: list[tuple[str, str]], reference: SentencePieceEncoder) -> Iterator[str]:
    """Yields texts where the order of two merges with equal scores (leftmost first in SentencePiece) could matter.

    Training gives each piece a different score, but a model that was extended by hand may have equal scores.
    """
    scores = {text: score for text, score, _ in reference.pieces}
    starting = defaultdict(list)
    for left, right in merges:
        starting[left, scores[left + right]].append(right)
    for left, right in merges:
        for end in starting.get((right, scores[left + right]), ()):
            yield left + right + end


def _normalizer(spec) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(SPACE)]
    if spec.precompiled_charsmap:
        charsmap = normalizers.Precompiled(spec.precompiled_charsmap)
        compose = [normalizers.NFC()] if charsmap.normalize_str("e\u0301") == "\u00e9" else []
        # `Precompiled` looks up clusters of characters and may lose the second of two. If the map drops the control
        # character 1, that character keeps them apart. NFC composes sequences that are single entries in the map.
        apart = [normalizers.Replace(Regex(r"(?!\A)(?=[^\x00-\x09\x0b-\x7f])"), "\x01")]
        steps += [*(apart if charsmap.normalize_str("a\x01b") == "ab" else compose), charsmap, *compose]
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"(?<=\A.) +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if not spec.add_dummy_prefix:
        steps.append(normalizers.Replace(Regex(r"\A."), ""))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(f"{SPACE if spec.escape_whitespaces else ' '}+\\z"), ""))
    return normalizers.Sequence(steps)


def _decoder(reference: SentencePieceEncoder) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    spec = reference.normalizer
    if spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        # Marks tokens before they are fused. Afterwards, text that spells a token would look the same.
        tokens = "|".join(rf"\A{re.escape(token.content)}" for token in reference.added_tokens.values())
        spaces = " +" if spec.remove_extra_whitespaces else " "
        steps.insert(0, decoders.Replace(Regex(rf"(?<={tokens})\z"), SEGMENT_END))
        steps.append(decoders.Replace(Regex(rf"(?:\A|{SEGMENT_END}){spaces}"), ""))
        steps.append(decoders.Replace(SEGMENT_END, ""))
    return decoders.Sequence(steps)
