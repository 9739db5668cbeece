# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A converted SentencePiece model has SentencePiece's ids on every line, or is rejected with the first difference.

The models are trained here, or written by hand if training cannot produce them. The conversion's own comparison is
repeated with an independent reference: `pieces_of` below, with the original model file.
"""

import functools
import io
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from vendor_checkpoints import write_vendor

from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify
from iquest_plt.tokenization import spm
from iquest_plt.tokenization.spm_encoder import SentencePieceEncoder


sentencepiece = pytest.importorskip("sentencepiece")

# First and last letters of scripts, emoji, and combining marks, which belong to no script.
SCRIPTS = ["AZ", "az", "Àž", "Αω", "Аџ", "את", "ءي", "अह", "กฮ", "ぁん", "ァヶ", "一丟", "가갛", "😀🙏"]
MARKS = ["\u0301", "\u0323", "\u064e", "\u05b7", "\u093e", "\u0e31", "\u200d", "\ufe0f"]
UNKNOWN = 0  # SentencePiece writes it as " ⁇ ", the tokenizer as "<unk>"
KEPT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
NAMES = ["<CLS>", "<PAD>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
PLAIN = ["<think>", "</think>", "<tools>", "</tools>", "<tool_call>", "</tool_call>"]
VARIANTS = {
    "vendor": KEPT,
    "whitespace pieces": KEPT | {"allow_whitespace_only_pieces": True, "split_by_whitespace": False},
    "digits": KEPT | {"split_digits": True, "split_by_number": False, "split_by_unicode_script": False},
    "no prefix": KEPT | {"add_dummy_prefix": False},
    "extra spaces removed": {"normalization_rule_name": "identity"},
    "extra spaces removed, no prefix": {"normalization_rule_name": "identity", "add_dummy_prefix": False},
    "no bytes": KEPT | {"byte_fallback": False},
    "control": KEPT | {"control_symbols": NAMES},
    "symbols": KEPT | {"user_defined_symbols": ["\n", "\t", "▁▁", "▁▁▁▁", "<think>", "self", "selfish", "Ω"]},
    "nmt_nfkc": {"normalization_rule_name": "nmt_nfkc"},
    "nmt_nfkc, spaces kept": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": False},
    "nmt_nfkc_cf": {"normalization_rule_name": "nmt_nfkc_cf"},
    "nfkc": KEPT | {"normalization_rule_name": "nfkc"},
}
UNMAPPED = [name for name, options in VARIANTS.items() if options["normalization_rule_name"] == "identity"]


def multi_script_lines(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)

    def word():
        first, last = map(ord, rng.choice(SCRIPTS))
        letters = [chr(rng.randint(first, last)) for _ in range(rng.randint(1, 7))]
        return "".join(letter + rng.choice(MARKS) * (rng.random() < 0.03) for letter in letters)

    return [
        "".join(word() + rng.choice([" ", " ", " ", ", ", "  ", "\t", "(", "。"]) for _ in range(9))
        for _ in range(count)
    ]


def random_lines(count: int, seed: int) -> list[str]:
    """Returns lines from all of Unicode, and short texts of special cases: spaces, "▁", line ends, byte names."""
    rng = random.Random(seed)
    everything = [chr(code) for code in itertools.chain(range(0xD800), range(0xE000, 0x20000))]
    delicate = [
        *" \n\t\r▁a0<>é",
        "  ",
        "\x00",
        "\u0301",
        "<0x0A>",
        "<s>",
        "</s>",
        "<unk>",
        "<CLS>",
        "<think>",
        "self",
        "\x01",
    ]
    return [
        "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12)))
        for alphabet in (everything, delicate)
        for _ in range(count // 2)
    ]


@pytest.fixture(scope="session")
def code_lines():
    library = Path(sysconfig.get_path("stdlib"))
    files = ("argparse", "ast", "dis", "inspect", "random", "typing")
    return [line for name in files for line in (library / f"{name}.py").read_text(encoding="utf-8").split("\n")]


@pytest.fixture(scope="session")
def lines(code_lines):
    """The lines that every conversion is compared on."""
    whole = ["\n".join(code_lines[start : start + 60]) for start in range(0, 1800, 60)]
    return [*code_lines[::6], *whole, *multi_script_lines(500, 1), *random_lines(1000, 2)]


@pytest.fixture(scope="session")
def train(code_lines, tmp_path_factory):
    """A function from SentencePiece's options to a model file, with the vendor's options by default."""
    text = [*code_lines, *multi_script_lines(1000, 0)]

    def train(**options):
        defaults = {"model_type": "bpe", "vocab_size": 1600, "byte_fallback": True, "character_coverage": 0.98}
        writer = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=writer, num_threads=1, minloglevel=2, **(defaults | options)
        )
        path = tmp_path_factory.mktemp("model") / "tokenizer.model"
        path.write_bytes(writer.getvalue())
        return path

    return train


@pytest.fixture(scope="session")
def models(train):
    """Returns the model file of a variant, trained on first use."""
    return functools.cache(lambda name: train(**VARIANTS[name]))


def proto_of(path: Path):
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())


def written(path: Path, proto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def by_hand(path: Path, pieces: list[tuple[str, float]], kind: int = 1) -> Path:
    """Writes a model with single characters and the given pieces."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for text, score, type_ in [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), *((*piece, kind) for piece in pieces)]:
        proto.pieces.add(piece=text, score=score, type=type_)
    for number, character in enumerate("▁abc"):
        proto.pieces.add(piece=character, score=-1000 - number, type=1)
    proto.trainer_spec.model_type = 2
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return written(path, proto)


def pieces_of(path: Path, tokens: dict[str, int]):
    """Returns SentencePiece's ids and decoded text for text that is split at `tokens`."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    split = re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")

    def encode(text):
        parts = [part for part in split.split(text) if part]
        ids = [[tokens[part]] if part in tokens else processor.encode(part) for part in parts]
        texts = [part if part in tokens else processor.decode(i) for part, i in zip(parts, ids, strict=True)]
        return list(itertools.chain(*ids)), "".join(texts)

    return encode


def tokens_of(path: Path, *extra: str) -> dict[str, int]:
    pieces = enumerate(proto_of(path).pieces)
    return {piece.piece: index for index, piece in pieces if piece.type in (2, 3) or piece.piece in extra}


# -- equality ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_line_has_the_ids_of_sentencepiece(models, lines, name, tmp_path):
    path = models(name)
    if name not in UNMAPPED:
        lines = [unicodedata.normalize("NFC", line) for line in lines]  # marks in canonical order, as in most text
    if name == "nfkc":  # marks may get lost after characters that the map replaces
        lines = [line for line in lines if not any(unicodedata.category(letter)[0] in "MC" for letter in line)]
    converted = spm.convert(path, lines=lines)
    converted.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference = pieces_of(path, tokens_of(path))
    for line in lines:
        expected, text = reference(line)
        ids = tokenizer.encode(line).ids
        assert ids == expected, line
        assert UNKNOWN in ids or tokenizer.decode(ids, skip_special_tokens=False) == text, line


@pytest.fixture(scope="session")
def converted(models):
    """Returns the tokenizer of a variant and its reference."""
    return functools.cache(lambda name: (spm.convert(models(name)), pieces_of(models(name), tokens_of(models(name)))))


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
delicate_text = st.lists(
    st.sampled_from(
        [*" ▁\n\t\x00aé<>|s0", "  ", "def ", "self", "selfish", "<0x41>", "<think>", "<|im_end|>", "</s>", "<CLS>"]
    )
).map("".join)


@pytest.mark.parametrize("name", UNMAPPED)
@settings(max_examples=150, deadline=None)
@given(text=any_text | delicate_text)
def test_any_text(converted, name, text):
    tokenizer, reference = converted(name)
    expected, decoded = reference(text)
    ids = tokenizer.encode(text).ids
    assert ids == expected
    assert UNKNOWN in ids or tokenizer.decode(ids, skip_special_tokens=False) == decoded


@settings(max_examples=300, deadline=None)
@given(text=(any_text | delicate_text).filter(lambda text: "▁" not in text))
def test_round_trip(converted, text):
    """With the vendor's options nothing is lost, except that "▁" is decoded as a space."""
    tokenizer, _ = converted("vendor")
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_dummy_prefix_is_added_and_stripped_per_segment(converted):
    tokenizer, _ = converted("control")
    text = "<|im_start|>user\nhi  <|im_end|> <|im_end|>\n<|im_start|>"
    encoding = tokenizer.encode(text)
    after = [encoding.tokens[i + 1] for i, token in enumerate(encoding.tokens[:-1]) if token in NAMES]
    assert [token[0] for token in after] == ["▁"] * 3
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("seed", range(12))
def test_scores_in_any_order(tmp_path, seed):
    """Uses random pieces with random scores: some are never made, and most can be split in several ways."""
    rng = random.Random(seed)
    pieces = sorted({"".join(rng.choices("ab▁", k=rng.randint(2, 6))) for _ in range(rng.randint(5, 40))})
    scores = rng.sample(range(len(pieces)), len(pieces))
    path = by_hand(tmp_path / "m.model", [(piece, -score) for piece, score in zip(pieces, scores, strict=True)])
    tokenizer, reference = spm.convert(path), pieces_of(path, tokens_of(path))
    texts = ["".join(letters) for length in range(8) for letters in itertools.product("ab ", repeat=length)]
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert encoding.ids == reference(text)[0], text


def test_nothing_merges_with_a_symbol_of_one_character(tmp_path):
    proto = proto_of(by_hand(tmp_path / "m.model", [("ab", 0), ("bc", -1), ("abc", -2)]))
    (symbol,) = (piece for piece in proto.pieces if piece.piece == "c")
    symbol.type = 4
    tokenizer = spm.convert(written(tmp_path / "m.model", proto))
    assert tokenizer.encode("abcbc").tokens == ["▁", "ab", "c", "b", "c"]


def test_trained_scores_shuffled(models, lines, tmp_path):
    proto = proto_of(models("vendor"))
    normal = [piece for piece in proto.pieces if piece.type == 1]
    scores = [piece.score for piece in normal]
    random.Random(0).shuffle(scores)
    for piece, score in zip(normal, scores, strict=True):
        piece.score = score
    path = written(tmp_path / "m.model", proto)
    tokenizer, reference = spm.convert(path), pieces_of(path, tokens_of(path))
    assert all(tokenizer.encode(line).ids == reference(line)[0] for line in lines)


# -- tokens of a folder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def vendor_folder(models, tmp_path_factory):
    """A folder like the released one: named tokens at the model's top ids, and the vendor's code and class names."""
    folder = tmp_path_factory.mktemp("vendor")
    proto = proto_of(models("vendor"))
    for name in NAMES:
        proto.pieces.add(piece=name, type=3 if name in ("<CLS>", "<PAD>") else 4)
    written(folder / "tokenizer.model", proto)
    top = len(proto.pieces)
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    names = {**tokens_of(folder / "tokenizer.model", *NAMES), **{name: top + i for i, name in enumerate(PLAIN)}}
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {"content": name, "special": name not in PLAIN, **flags} for name, index in names.items()
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_vendor.IQuestCoderTokenizer", None]},
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", **flags},
        "model_max_length": 131072,
        "sp_model_kwargs": {},
        "tokenizer_class": "IQuestCoderTokenizer",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<PAD>", **flags}}))
    (folder / "added_tokens.json").write_text(json.dumps({name: names[name] for name in PLAIN}))
    (folder / "tokenization_vendor.py").write_text("raise SystemExit('the code of a checkpoint was run')\n")
    return folder, names


CHAT = "<|im_start|>user\nadd  1 and 2<|im_end|>\n<|im_start|>assistant\n<think>\nadd</think> <tool_call>{}</tool_call>"


@pytest.mark.parametrize("loader", [AutoTokenizer, PreTrainedTokenizerFast])
@pytest.mark.parametrize("beside", [False, True])
def test_folder(vendor_folder, lines, tmp_path, loader, beside):
    """Loads without code, even if the source's files are in the same folder."""
    folder, names = vendor_folder
    tokenizer, config = spm.convert_folder(folder, lines=[CHAT])
    if beside:
        for name in ("tokenizer.model", "special_tokens_map.json", "added_tokens.json"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in config
    assert "IQuestCoder" not in json.dumps(config) and config["model_max_length"] == 131072

    loaded = loader.from_pretrained(tmp_path)
    reference = pieces_of(folder / "tokenizer.model", names)
    for line in [CHAT, *lines, *(f"{a}x {b}" for a in names for b in names)]:
        expected, text = reference(line)
        assert loaded(line)["input_ids"] == expected, line
        assert loaded.decode(expected) == text, line
    assert loaded.decode(reference(CHAT)[0]) == CHAT
    assert loaded.decode([names["<|im_end|>"], names["<think>"]], skip_special_tokens=True) == "<think>"
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
    assert loaded.pad_token_id == names["<PAD>"]
    assert set(loaded.all_special_ids) == {index for name, index in names.items() if name not in PLAIN}
    assert len(loaded) == max(names.values()) + 1


def test_folder_with_the_model_alone(models, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(models("symbols").read_bytes())
    tokenizer, config = spm.convert_folder(tmp_path)
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    # A symbol that is not named is not a special token, and the text after it gets no dummy prefix.
    assert tokenizer.encode("a<think>b").tokens == ["▁a", "<think>", "b"]
    assert tokenizer.encode("a<s>b").tokens == ["▁a", "<s>", "▁b"]


def test_named_symbols_are_split_out(models):
    path = models("symbols")
    tokenizer = spm.convert(path, special_tokens=["<think>", "<new>"], lines=["a<think>b <new>  c\n\t\tself.x"])
    assert tokenizer.encode("a<think>b<new>c").tokens == ["▁a", "<think>", "▁b", "<new>", "▁c"]
    assert tokenizer.token_to_id("<new>") == len(proto_of(path).pieces)
    assert tokenizer.decode(tokenizer.encode("a<think>b<new>").ids) == "a b"


def test_reserved_pieces_take_the_name_of_an_added_token(models):
    path = models("control")
    index = tokens_of(path)["<CLS>"]
    tokenizer = spm.convert(path, added_tokens={index: AddedToken("<new>", special=True)}, lines=["a<new> b<CLS>"])
    assert tokenizer.encode("a<new>b").ids[1] == index and tokenizer.token_to_id("<CLS>") is None


def test_stripping_tokens(models):
    """Covers tokens that absorb the space around them, as mask tokens often do."""
    path = models("vendor")
    top = len(proto_of(path).pieces)
    added = {top: AddedToken("<m>", lstrip=True), top + 5: AddedToken("<n>", rstrip=True)}
    tokenizer = spm.convert(path, added_tokens=added, lines=["a  <m> b <n>  c", " <m>", "<n> "])
    assert tokenizer.encode("a  <m> b").tokens == ["▁a", "  <m>", "▁", "▁b"]
    assert tokenizer.encode("a <n>  b").ids[-2:] == [top + 5, tokenizer.token_to_id("▁b")]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({300: AddedToken("<x>")}, "has the id 300 of the piece"),
        ({5000: AddedToken("<s>")}, "has the id 5000, but in the model it is 1"),
        ({5000: AddedToken("<x>"), 5001: AddedToken("<x>")}, "declared twice"),
        ({5000: AddedToken("")}, "is empty"),
        ({-1: AddedToken("<x>")}, "has an invalid id"),
        ({5000: AddedToken("<x>", single_word=True)}, "single_word"),
    ],
)
def test_impossible_tokens(models, added, message):
    with pytest.raises(ValueError, match=message):
        spm.convert(models("vendor"), added_tokens=added)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "<x>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}'),
        ("tokenizer_config.json", '{"bos_token": 5}'),
        ("special_tokens_map.json", '{"bos_token": {"text": "<s>"}}'),
        ("special_tokens_map.json", '{"additional_special_tokens": [[]]}'),
        ("special_tokens_map.json", '{"additional_special_tokens": 7}'),
        ("added_tokens.json", '{"<x>": "y"}'),
        ("added_tokens.json", "\xff"),
    ],
)
def test_damaged_folder(models, tmp_path, name, content):
    (tmp_path / "tokenizer.model").write_bytes(models("vendor").read_bytes())
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="token"):
        spm.convert_folder(tmp_path)


# -- refusals ----------------------------------------------------------------------------------------------------------


def shuffled(original):
    return lambda reference: random.Random(0).sample(merges := original(reference), len(merges))


def without_prefix(original):
    return lambda spec: normalizers.Replace(" ", "▁")


def prefix_kept(original):
    from tokenizers import decoders

    return lambda reference: decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def one_merge_missing(original):
    return lambda reference: original(reference)[:-1]


@pytest.mark.parametrize(
    ("function", "sabotage", "place"),
    [
        ("_merges", shuffled, r"text of the probe \d+, segment 1 .*: from token \d+, SentencePiece has \[\d+, "),
        ("_merges", one_merge_missing, r"piece \d+, segment 1 "),
        (
            "_normalizer",
            without_prefix,
            r"text of the probe 2, segment 1 ' ': from token 1, SentencePiece has \[\d+\]",
        ),
        ("_decoder", prefix_kept, r"text of the probe 2, ' ': decodes to '  ', but SentencePiece decodes to ' '"),
    ],
)
def test_wrong_conversions_are_rejected(models, monkeypatch, function, sabotage, place):
    monkeypatch.setattr(spm, function, sabotage(getattr(spm, function)))
    with pytest.raises(ValueError, match=f"cannot be converted exactly: {place}"):
        spm.convert(models("vendor"))


def test_check_reports_the_place(models, vendor_folder):
    """Runs the check alone, with the tokenizers of two different models."""
    folder, _ = vendor_folder
    path = folder / "tokenizer.model"
    tokenizer, _ = spm.convert_folder(folder)
    assert SentencePieceEncoder(path).check(tokenizer, []) == 0
    assert SentencePieceEncoder(path, NAMES).check(tokenizer, (line for line in ["def f(x):", "<|im_start|>a"])) == 2
    with pytest.raises(ValueError, match=r"row 3, segment 3 'x y': from token 0, SentencePiece has \[\d+"):
        other = spm.convert(models("no prefix"), added_tokens={5000: AddedToken("<|im_end|>", special=True)})
        probe = SentencePieceEncoder(models("vendor"), added_tokens={5000: AddedToken("<|im_end|>", special=True)})
        probe.check(other, ["", "<|im_end|>", "<|im_end|><|im_end|>x y"], "row")


def test_unsupported_text_for_a_character_map_is_rejected(models):
    """NFC composes marks that are not in canonical order, but the map does not."""
    with pytest.raises(ValueError, match="line 2, segment 1 'a\u0302\u0323'"):
        spm.convert(models("nmt_nfkc"), lines=["a\u0323\u0302", "a\u0302\u0323"])


def test_pieces_of_one_score(tmp_path):
    """SentencePiece joins the leftmost, the tokenizer the first. Conversion fails if these differ."""
    spm.convert(by_hand(tmp_path / "m.model", [("ab", 0), ("bc", 0), ("ca", -1)]))
    spm.convert(by_hand(tmp_path / "m.model", [("aa", 0), ("bb", 0)]))
    with pytest.raises(ValueError, match="text of two pieces of one score 1, segment 1 'abc'"):
        spm.convert(by_hand(tmp_path / "m.model", [("bc", 0), ("ab", 0), ("ca", -1)]))


def edited(change):
    """Returns an edit of a model's protobuf message."""

    def edit(models, folder):
        proto = proto_of(models("nmt_nfkc"))
        change(proto)
        return written(folder / "m.model", proto)

    return edit


def damage_map(proto):
    charsmap = bytearray(proto.normalizer_spec.precompiled_charsmap)
    charsmap[4:8] = b"\xff\xff\xff\x7f"  # the root points out of the trie
    proto.normalizer_spec.precompiled_charsmap = bytes(charsmap)


def cut_map(proto):
    proto.normalizer_spec.precompiled_charsmap = proto.normalizer_spec.precompiled_charsmap[:1000]


def unreachable_piece(models, folder):
    path = by_hand(folder / "m.model", [("bc", 0), ("ab", -1), ("abca", -2)])
    spm.convert(path)
    proto = proto_of(path)
    proto.pieces.add(piece="aa", type=4)
    return written(path, proto)


REFUSED = {
    "a piece beside symbols": (unreachable_piece, "never makes the piece 'abca'"),
    "missing character": (
        lambda models, folder: by_hand(folder / "m.model", [("axb", 0)]),
        "which is not a piece",
    ),
    "unused piece": (lambda models, folder: by_hand(folder / "m.model", [("ab", 0)], kind=5), "marked unused"),
    "suffix": (edited(lambda p: setattr(p.trainer_spec, "treat_whitespace_as_suffix", True)), "whitespace_as_suffix"),
    "unigram": (edited(lambda p: setattr(p.trainer_spec, "model_type", 1)), "unigram model, but only BPE"),
    "word": (edited(lambda p: setattr(p.trainer_spec, "model_type", 3)), "word model, but only BPE"),
    "denormalizer": (edited(lambda p: setattr(p.denormalizer_spec, "precompiled_charsmap", b"x")), "denormalizer"),
    "bytes missing": (edited(lambda p: setattr(p.pieces[20], "type", 1)), "not the 256 pieces"),
    "score": (edited(lambda p: setattr(p.pieces[300], "score", float("nan"))), "not numbers"),
    "two pieces": (edited(lambda p: setattr(p.pieces[300], "piece", p.pieces[301].piece)), "SentencePiece cannot load"),
    "no unknown": (edited(lambda p: setattr(p.pieces[0], "type", 1)), "not have exactly one unknown piece"),
    "damaged map": (edited(damage_map), "damaged character map"),
    "cut map": (edited(cut_map), "damaged character map"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_converted(models, tmp_path, name):
    make, message = REFUSED[name]
    path = make(models, tmp_path)
    with pytest.raises(ValueError, match=message):
        spm.convert(path)


@pytest.mark.parametrize("name", ["missing", "folder", "empty", "text", "other"])
def test_no_model(tmp_path, name):
    path = tmp_path / "tokenizer.model"
    if name == "folder":
        path.mkdir()
    elif name != "missing":
        path.write_bytes({"empty": b"", "text": b"version https://git-lfs\n", "other": bytes(range(256)) * 9}[name])
    with pytest.raises(ValueError, match=r"tokenizer\.model (could not be read|is not a SentencePiece model)"):
        spm.convert(path)


def test_truncated_model(models, tmp_path):
    """Covers cuts anywhere, even between two fields, where protobuf reports no error."""
    whole = models("vendor").read_bytes()
    path = tmp_path / "m.model"
    proto = proto_of(models("vendor"))
    after_pieces = sum(len(piece.SerializeToString()) + 2 for piece in proto.pieces)
    ends = [*random.Random(0).sample(range(len(whole)), 60), after_pieces]
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cut off|damaged"):
            spm.convert(path)


def test_changed_bytes(models, tmp_path):
    """A changed model either converts to SentencePiece's ids or is rejected."""
    whole = models("vendor").read_bytes()
    rng = random.Random(0)
    path = tmp_path / "m.model"
    refused = 0
    for _ in range(80):
        changed = bytearray(whole)
        changed[rng.choice([rng.randrange(len(whole)), -1 - rng.randrange(300)])] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            tokenizer = spm.convert(path)
        except ValueError:
            refused += 1
        else:
            assert tokenizer.encode(CHAT).ids == pieces_of(path, tokens_of(path))(CHAT)[0]
    assert 20 < refused < 80


def test_without_the_extra(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=re.escape("pip install '.[conversion]'")):
        spm.convert(models("vendor"))


# -- in a checkpoint ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(vendor_folder, tmp_path_factory):
    """A vendor's checkpoint with only `tokenizer.model`, and its conversion."""
    folder, names = vendor_folder
    path = tmp_path_factory.mktemp("checkpoint")
    source = write_vendor(path / "source", tiny_model(vocab_size=max(names.values()) + 9, eos_token_id=2), shards=2)
    for file in folder.iterdir():
        shutil.copy(file, source)
    convert(str(source), path / "target")
    return path


def test_a_converted_checkpoint_has_the_ids_of_its_sentencepiece_model(checkpoint, vendor_folder, lines):
    folder, names = vendor_folder
    report = verify(checkpoint / "target")
    assert report["problems"] == report["notes"] == []
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "target")
    assert type(tokenizer).__name__ == "IQuestPLTCoderTokenizer"
    reference = pieces_of(folder / "tokenizer.model", names)
    for line in [CHAT, *lines[:300]]:
        assert tokenizer(line)["input_ids"] == reference(line)[0]
    generation = GenerationConfig.from_pretrained(checkpoint / "target")
    assert generation.eos_token_id == [2, names["<|im_end|>"]] and generation.pad_token_id == names["<PAD>"]


QUICK_START = """if True:
    import sys
    if sys.argv[2] == "package":
        import iquest_plt
    from transformers import AutoModelForCausalLM, AutoTokenizer
    trust = {} if sys.argv[2] == "package" else {"trust_remote_code": True}
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **trust)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", **trust)
    messages = [{"role": "user", "content": "def f(x):\\n    return  x"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_tensors="pt")
    outputs = model.generate(inputs.to(model.device), max_new_tokens=6, do_sample=False)
    assert "iquest_plt" not in sys.modules or sys.argv[2] == "package"
    print(inputs["input_ids"].tolist(), outputs[0][inputs.shape[-1]:].tolist())
"""


def test_the_quick_start_runs_on_a_converted_checkpoint(checkpoint):
    command = [sys.executable, "-c", QUICK_START, checkpoint / "target"]
    package, remote = (
        subprocess.run([*command, how], cwd=checkpoint, check=True, stdout=subprocess.PIPE, text=True).stdout
        for how in ("package", "remote code")
    )
    assert package == remote and "[[" in package


def test_the_vendors_own_tokenizer_is_not_loaded_wrongly(checkpoint):
    """Transformers would load it as a tokenizer with other ids, so an error is raised."""
    with pytest.raises(ValueError, match="iquest-plt convert"):
        AutoTokenizer.from_pretrained(checkpoint / "source")


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({"add_bos_token": True}, ([1], [])),
        ({"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
        ({"tokenizer_class": "LlamaTokenizer"}, ([1], [])),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, ([], [])),
        ({}, ([], [])),
    ],
)
def test_tokens_around_a_text(models, tmp_path, config, ends):
    (tmp_path / "tokenizer.model").write_bytes(models("vendor").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<s>", "eos_token": "</s>"}))
    tokenizer, _ = spm.convert_folder(tmp_path)
    plain = tokenizer.encode("def f", add_special_tokens=False).ids
    assert tokenizer.encode("def f").ids == [*ends[0], *plain, *ends[1]]


@pytest.mark.parametrize("text", ["<s> old </s> new", "print('<unk> ')", "a <s>", " <s>  x"])
def test_text_that_spells_a_token_keeps_its_spaces(models, text):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(models("vendor")))
    tokenizer = spm.convert(models("vendor"))
    ids = processor.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == processor.decode(ids) == text
