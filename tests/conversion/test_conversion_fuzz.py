# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A randomly changed checkpoint either fails with a ValueError or converts to exactly what it contains."""

import json
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import tiny_model
from vendor_checkpoints import write_vendor

from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify


FILES = ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_vendor(tmp_path_factory.mktemp("fuzz") / "source", tiny_model(num_hidden_layers=1), shards=2)


def convert_changed(source: Path, file: str, content: bytes) -> None:
    """Converts the checkpoint with `file` replaced, and checks the result if there is one."""
    with tempfile.TemporaryDirectory() as place:
        changed, target = Path(place) / "source", Path(place) / "target"
        shutil.copytree(source, changed)
        (changed / file).write_bytes(content)
        try:
            convert(str(changed), target)
        except ValueError as error:
            assert str(error)
            assert [path.name for path in Path(place).iterdir()] == ["source"]
            return
        problems = verify(target)["problems"]
        assert all("NaN" in problem for problem in problems), problems  # a changed number may be NaN
        held = {}
        for shard in changed.glob("*.safetensors"):
            held |= load_file(shard)
        found = {}
        for shard in target.glob("*.safetensors"):
            found |= load_file(shard)
        assert held.keys() == found.keys()
        for name, tensor in held.items():
            assert torch.equal(tensor.view(torch.uint8), found[name].view(torch.uint8)), name


def header_length(content: bytes) -> int:
    return 8 + struct.unpack("<Q", content[:8])[0]


bytewise = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True, max_examples=60
)
many = settings(bytewise, max_examples=1500)


def change_bytes(source, file, data):
    content = bytearray((source / file).read_bytes())
    end = header_length(content) if file.endswith(".safetensors") else len(content)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, end - 1))
        kind = data.draw(st.sampled_from(["replace", "insert", "delete", "cut"]))
        if kind == "replace":
            content[position] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789"{}[],:-.e'))
        elif kind == "insert":
            content[position:position] = data.draw(st.binary(min_size=1, max_size=4))
        elif kind == "delete":
            del content[position : position + data.draw(st.integers(1, 8))]
        else:
            del content[position:]
        end = min(end, len(content))
        if not end:
            break
    convert_changed(source, file, bytes(content))


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["bfloat16", "plt", "llama", "yarn", "silu", "../x"])
    | st.lists(st.integers(-3, 100), max_size=3)
    | st.dictionaries(st.sampled_from(["rope_type", "factor", "x"]), st.integers(0, 4) | st.just("yarn"), max_size=2)
)


def change_field(source, data):
    fields = json.loads((source / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(VALUES)
    convert_changed(source, "config.json", json.dumps(fields).encode())


def change_entry(source, data):
    """Returns a header that is valid JSON, with one entry changed."""
    content = (source / FILES[2]).read_bytes()
    end = header_length(content)
    header = json.loads(content[8:end])
    name = data.draw(st.sampled_from(sorted(header)))
    if data.draw(st.booleans()) or name == "__metadata__":
        header[name] = data.draw(VALUES)
    else:
        header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(VALUES)
    raw = json.dumps(header).encode()
    convert_changed(source, FILES[2], struct.pack("<Q", len(raw)) + raw + content[end:])


@bytewise
@given(file=st.sampled_from(FILES), data=st.data())
def test_changed_bytes(source, file, data):
    change_bytes(source, file, data)


@bytewise
@given(data=st.data())
def test_changed_fields(source, data):
    change_field(source, data)


@bytewise
@given(data=st.data())
def test_changed_entries(source, data):
    change_entry(source, data)


@pytest.mark.slow
@many
@given(file=st.sampled_from(FILES), data=st.data())
def test_changed_bytes_many(source, file, data):
    change_bytes(source, file, data)


@pytest.mark.slow
@many
@given(data=st.data())
def test_changed_fields_many(source, data):
    change_field(source, data)


@pytest.mark.slow
@many
@given(data=st.data())
def test_changed_entries_many(source, data):
    change_entry(source, data)
