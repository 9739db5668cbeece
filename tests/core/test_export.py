# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`torch.export` and ONNX without a cache: one graph serves every batch size and length, with or without a mask."""

import pytest
import torch
from tiny import TOLERANCE, distance, oracle, tiny_model, tokens
from torch.export import Dim


SHAPES = [(3, 23), (1, 5), (1, 2), (5, 7), (1, 130)]  # below and above the window of 4, and different from the example


class Logits(torch.nn.Module):
    """The exported module: logits for a fixed number of loops, without a cache."""

    def __init__(self, model, num_loops: int):
        super().__init__()
        self.model, self.num_loops = model, num_loops

    def forward(self, input_ids, attention_mask=None):
        return self.model(input_ids, attention_mask=attention_mask, num_loops=self.num_loops, use_cache=False).logits


def inputs(batch: int, time: int, with_mask: bool) -> tuple[torch.Tensor, ...]:
    """Returns rows with padding before, between and after the tokens, if they are long enough."""
    ids = tokens(batch, time, seed=time)
    if not with_mask:
        return (ids,)
    mask = torch.ones_like(ids)
    if time > 4:
        mask[0, :2] = 0
        mask[-1, 3:5] = 0
        mask[batch // 2, -2:] = 0
    return ids, mask


def example(with_mask: bool) -> tuple[tuple[torch.Tensor, ...], tuple[dict, ...]]:
    sizes = {0: Dim("batch", max=64), 1: Dim("time", max=512)}
    arguments = inputs(2, 12, with_mask)
    return arguments, (sizes,) * len(arguments)


def check(model, num_loops: int, run, with_mask: bool) -> None:
    """Checks that `run(*inputs)` gives the model's logits for every token, and the oracle's for the first row."""
    for shape in SHAPES:
        arguments = inputs(*shape, with_mask)
        with torch.no_grad():
            found, expected = run(*arguments), Logits(model, num_loops)(*arguments)
        is_token = arguments[-1].bool() if with_mask else torch.ones(shape, dtype=torch.bool)
        torch.testing.assert_close(found[is_token], expected[is_token], rtol=1e-4, atol=1e-4)
        row = arguments[0][0][is_token[0]]
        assert distance(found[0][is_token[0]], oracle(model, row, num_loops)) < TOLERANCE


@pytest.mark.parametrize("with_mask", [False, True], ids=["plain", "mask"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("num_loops", [1, 2])
def test_export_keeps_batch_and_time(num_loops, attention, with_mask):
    model = tiny_model(attention=attention)
    arguments, sizes = example(with_mask)
    program = torch.export.export(Logits(model, num_loops), arguments, dynamic_shapes=sizes, strict=False)
    check(model, num_loops, program.module(), with_mask)


def test_export_with_an_example_shorter_than_the_window():
    """The window covers the whole example but not all inputs, so no branch on length may be fixed in the graph."""
    model = tiny_model(plt_window_size=[40, 0])
    arguments, sizes = example(True)
    program = torch.export.export(Logits(model, 3), arguments, dynamic_shapes=sizes, strict=False)
    check(model, 3, program.module(), True)


def test_export_of_the_last_logits():
    """For the last logits, loops usually run over only the end. A graph for any length runs them over everything."""
    model = tiny_model()

    class Last(torch.nn.Module):
        def forward(self, input_ids):
            return model(input_ids, logits_to_keep=1, use_cache=False).logits

    arguments, sizes = example(False)
    run = torch.export.export(Last(), arguments, dynamic_shapes=sizes, strict=False).module()
    for shape in SHAPES:
        ids = tokens(*shape)
        torch.testing.assert_close(run(ids), Last()(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_mask", [False, True], ids=["plain", "mask"])
@pytest.mark.parametrize("num_loops", [1, 2])
def test_onnx(num_loops, with_mask, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="pip install onnx onnxscript onnxruntime")
    import onnxruntime

    model = tiny_model()
    arguments, sizes = example(with_mask)
    program = torch.onnx.export(Logits(model, num_loops), arguments, dynamo=True, dynamic_shapes=sizes, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*tensors):
        feed = dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    check(model, num_loops, run, with_mask)
