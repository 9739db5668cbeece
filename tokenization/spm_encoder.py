# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""SentencePiece's own encoding of text with added tokens, the reference for a converted tokenizer.

Text is split at the added tokens, each segment is encoded with SentencePiece including the dummy prefix, and the ids
are concatenated. User-defined symbols of the model that are not added tokens stay inside their segment.
"""

import itertools
import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer


# Piece types and model types in SentencePiece's format.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
BATCH = 1000  # lines


class Segment(NamedTuple):
    """A part of a text: an added token, or the text between two of them."""

    text: str
    ids: list[int]
    decoded: str


class SentencePieceEncoder:
    """SentencePiece's own encoding with added tokens, the reference for a converted tokenizer.

    `special_tokens` are strings that become special tokens: pieces of the model, or new ones, which get the next ids.
    `added_tokens` maps ids to tokens, like `added_tokens_decoder` in a tokenizer folder. A token with the id of a
    control, user-defined or unused piece replaces that piece. Both are added to the model's control and unknown pieces.

    Raises ValueError if the file is not a SentencePiece BPE model, or if a `tokenizers.Tokenizer` cannot express it.
    """

    def __init__(
        self,
        model_file: str | Path,
        special_tokens: Iterable[str] = (),
        added_tokens: Mapping[int, AddedToken] | None = None,
    ):
        self.file = Path(model_file)
        proto = _parse(self.file)
        _check_expressible(self.file, proto)
        self.added_tokens = _locate(proto.pieces, special_tokens, added_tokens or {})
        for index, token in self.added_tokens.items():
            if index < len(proto.pieces) and proto.pieces[index].piece != token.content:
                proto.pieces[index].piece = token.content
        self.pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
        self.normalizer, self.byte_fallback = proto.normalizer_spec, proto.trainer_spec.byte_fallback
        self.processor = _processor(self.file, proto)
        longest_first = sorted(self.added_tokens.items(), key=lambda item: len(item[1].content), reverse=True)
        self._split = re.compile("|".join(f"({_pattern(token)})" for _, token in longest_first))
        self._ids = [index for index, _ in longest_first]

    @property
    def user_defined(self) -> list[str]:
        """The user-defined symbols inside segments, longest first."""
        added = {token.content for token in self.added_tokens.values()}
        symbols = [text for text, _, kind in self.pieces if kind == USER_DEFINED and text not in added]
        return sorted(symbols, key=len, reverse=True)

    def encode(self, text: str) -> list[Segment]:
        """Returns the segments of `text` and the added tokens between them. Their concatenated ids encode `text`."""
        segments, end = [], 0
        for match in self._split.finditer(text):
            if match.start() > end:
                segments.append(self._plain(text[end : match.start()]))
            index = self._ids[match.lastindex - 1]  # type: ignore[operator]
            segments.append(Segment(match.group(), [index], self.added_tokens[index].content))
            end = match.end()
        if end < len(text):
            segments.append(self._plain(text[end:]))
        return segments

    def _plain(self, text: str) -> Segment:
        ids = self.processor.encode(text)
        return Segment(text, ids, self.processor.decode(ids))

    def check(self, tokenizer: Tokenizer, lines: Iterable[str], name: str = "line") -> int:
        """Compares ids and decoded text on `lines`, which may be a generator. Returns the number of lines.

        Decoded text with the unknown token, which SentencePiece writes as " ⁇ ", is not compared. At the first
        difference, raises a ValueError with `name`, the number of the line (from 1), the segment and the ids.
        """
        lines, count, unknown = iter(lines), 0, self.processor.unk_id()
        while batch := list(itertools.islice(lines, BATCH)):
            encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
            texts = tokenizer.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
            for line, encoding, text in zip(batch, encodings, texts, strict=True):
                count += 1
                segments = self.encode(line)
                expected = [index for segment in segments for index in segment.ids]
                decoded = "".join(segment.decoded for segment in segments)
                if encoding.ids != expected:
                    where = _difference(tokenizer, segments, Segment(line, expected, decoded))
                elif text != decoded and unknown not in expected:
                    where = f"{line[:80]!r}: decodes to {text[:80]!r}, but SentencePiece decodes to {decoded[:80]!r}"
                else:
                    continue
                raise ValueError(f"{self.file} cannot be converted exactly: {name} {count}, {where}")
        return count


def _difference(tokenizer: Tokenizer, segments: list[Segment], line: Segment) -> str:
    """Describes the first segment where the tokenizer differs from SentencePiece even if encoded alone."""
    name, segment = "text", line
    for number, candidate in enumerate(segments, 1):
        if tokenizer.encode(candidate.text, add_special_tokens=False).ids != candidate.ids:
            name, segment = f"segment {number}", candidate
            break
    found = tokenizer.encode(segment.text, add_special_tokens=False).ids
    pairs = itertools.zip_longest(segment.ids, found)
    first = next((token for token, (left, right) in enumerate(pairs) if left != right), 0)
    return (
        f"{name} {segment.text[:80]!r}: from token {first}, SentencePiece has {segment.ids[first : first + 8]}, but "
        f"the converted tokenizer has {found[first : first + 8]}"
    )


def _parse(file: Path):
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ValueError(
            f"Reading {file} needs SentencePiece and protobuf. "
            "Run: pip install '.[conversion]' in a checkout of iquest-plt"
        ) from error
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
        texts = [piece.piece for piece in proto.pieces]
    except OSError as error:
        raise ValueError(f"{file} could not be read: {error.strerror}") from error
    except Exception as error:  # protobuf's errors differ between its implementations
        raise ValueError(f"{file} is not a SentencePiece model, or is damaged. Download it again.") from error
    if not all(isinstance(text, str) for text in texts):  # invalid UTF-8 is returned as bytes
        raise ValueError(f"{file} is not a SentencePiece model, or is damaged. Download it again.")
    if not texts or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
        raise ValueError(f"{file} is not a SentencePiece model, or is cut off. Download it again.")
    return proto


def _processor(file: Path, proto):
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=proto.SerializeToString())
    except Exception as error:
        raise ValueError(f"SentencePiece cannot load {file}: {error}") from error


def _locate(pieces, special_tokens: Iterable[str], added_tokens: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
    """Returns all added tokens by id: the given ones, special ones without an id, and control and unknown pieces."""
    ids = {piece.piece: index for index, piece in enumerate(pieces)}
    located = {}
    for index, token in sorted(added_tokens.items()):
        if not token.content or not 0 <= index < 1 << 31:
            raise ValueError(f"The added token {token.content!r} with the id {index} is empty or has an invalid id.")
        if token.single_word:
            raise ValueError(f"The added token {token.content!r} is marked single_word, which is not supported.")
        known = pieces[index] if index < len(pieces) else None
        if ids.get(token.content, index) != index:
            raise ValueError(
                f"The added token {token.content!r} has the id {index}, but in the model it is {ids[token.content]}."
            )
        if known and known.piece != token.content and known.type not in (CONTROL, USER_DEFINED, UNUSED):
            raise ValueError(f"The added token {token.content!r} has the id {index} of the piece {known.piece!r}.")
        if token.content in (other.content for other in located.values()):
            raise ValueError(f"The added token {token.content!r} is declared twice.")
        located[index] = AddedToken(
            token.content, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False
        )
    for index, piece in enumerate(pieces):
        if piece.type in (CONTROL, UNKNOWN) and index not in located:
            located[index] = AddedToken(piece.piece, special=True, normalized=False)
    for content in special_tokens:
        if not content:
            raise ValueError("A special token is empty.")
        index = next((index for index, token in located.items() if token.content == content), ids.get(content))  # type: ignore[assignment]
        if index is None:
            index = max(len(pieces), max(located) + 1)
        token = located.setdefault(index, AddedToken(content, normalized=False))
        token.special = True
    return located


def _pattern(token: AddedToken) -> str:
    return (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")


def _check_expressible(file: Path, proto) -> None:
    """Raises ValueError for a valid model with features that a `tokenizers.Tokenizer` does not have."""
    trainer, normalizer, pieces = proto.trainer_spec, proto.normalizer_spec, proto.pieces
    if trainer.model_type != 2:
        kind = MODEL_TYPES.get(trainer.model_type, trainer.model_type)
        raise ValueError(f"{file} is a SentencePiece {kind} model, but only BPE models can be converted.")
    if trainer.treat_whitespace_as_suffix:
        raise ValueError(f"{file} marks the ends of words (treat_whitespace_as_suffix), which is not supported.")
    if proto.denormalizer_spec.precompiled_charsmap:
        raise ValueError(f"{file} changes characters when decoding (denormalizer_spec), which is not supported.")
    if sum(piece.type == UNKNOWN for piece in pieces) != 1:
        raise ValueError(f"{file} is damaged: it does not have exactly one unknown piece. Download it again.")
    if trainer.byte_fallback and sum(piece.type == BYTE for piece in pieces) != 256:
        raise ValueError(f"{file} has byte_fallback, but not the 256 pieces for bytes.")
    if not all(math.isfinite(piece.score) for piece in pieces):
        raise ValueError(f"{file} is damaged: it has scores that are not numbers. Download it again.")
    if normalizer.precompiled_charsmap and not _sound(normalizer.precompiled_charsmap):
        raise ValueError(f"{file} has a damaged character map (precompiled_charsmap). Download it again.")


def _sound(charsmap: bytes) -> bool:
    """Returns whether a character map can be read without leaving its bounds, which neither library checks.

    The map consists of the length of a double-array trie in bytes, the trie of 32-bit units, and zero-terminated texts.
    A leaf has its highest bit set. Other units have the offset to their children from bit 10 on, times 256 with bit 9.
    """
    length = int.from_bytes(charsmap[:4], "little")
    texts = charsmap[4 + length :]
    if not length or length % 1024 or texts[-1:] != b"\0":
        return False
    try:
        texts.decode()
    except UnicodeDecodeError:
        return False
    units = struct.unpack_from(f"<{length // 4}I", charsmap, 4)
    for position, unit in enumerate(units):
        if unit >> 31:
            continue
        child = position ^ (unit >> 10 << ((unit & 1 << 9) >> 6))
        if child | 255 >= length // 4 or (unit >> 8 & 1 and units[child] & 0x7FFFFFFF >= len(texts)):
            return False
    return True
