# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`iquest-plt diagnose` and `sweep`: the files they write, and that they write all of them or none."""

import html
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT


pytest.importorskip("matplotlib", reason="pip install '.[diagnostics]' in a checkout of iquest-plt")
pytest.importorskip("greenlet", reason="pip install '.[diagnostics]' in a checkout of iquest-plt")

from command_line import run
from tiny import llama_of, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from iquest_plt import diagnostics
from iquest_plt.benchmarks import small_report
from iquest_plt.cli import data as cli_data
from iquest_plt.cli import diagnose, output_folder, sweep
from iquest_plt.diagnostics import GainCost, interpretation, report
from iquest_plt.diagnostics import plots as diagnostic_plots


FAST = ["--max-loops", 2, "--max-length", 32]


def save(folder: Path, model) -> Path:
    """Saves a checkpoint with a byte-level tokenizer."""
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab | {"<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_model(vocab_size=257, num_hidden_layers=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.py").write_text("def f(x):\n\treturn x  # </script>\n")
    (folder / "b.txt").write_text("Grüße, 世界\n" * 2)
    (folder / "c.txt").write_text("one two three four five six seven")
    return folder


@pytest.fixture(scope="module")
def reported(checkpoint, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    code, output, error = run("diagnose", checkpoint, "--data", data, "--out", out, "--name", "a tiny one", *FAST)
    assert code == 0, error
    return out, output


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_diagnose_writes_a_report(reported, data):
    out, output = reported
    assert {path.name for path in out.iterdir()} == diagnose.FILES
    result = GainCost.load(out / "gain_cost.json")
    assert result.model["name"] == "a tiny one" and result.max_loops == 2
    assert [document["name"] for document in result.documents] == ["a.py", "b.txt", "c.txt"]
    assert result.bytes == sum(len(path.read_bytes()) for path in data.iterdir())
    assert "3 documents" in output and result.reason in output.replace("\n", " ")
    lens = json.loads((out / "lens.json").read_text())
    assert "".join(lens["text"]) == (data / "a.py").read_text()
    page = (out / "report.html").read_text()
    assert "a tiny one" in page and "<code>a.py</code>" in page and str(data) not in page
    assert all(html.escape(sentence, quote=False) in html.unescape(page) for sentence in interpretation.loss(result))
    assert (out / "gain_cost.csv").read_text() == report.to_csv(result)
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in diagnose.PICTURES)


def test_only_an_earlier_report_is_replaced(reported, checkpoint, data, tmp_path):
    earlier, _ = reported
    out = tmp_path / "report"
    shutil.copytree(earlier, out)
    (out / "gates.png").unlink()
    arguments = ["diagnose", checkpoint, "--data", data / "b.txt", "--out", out, *FAST]
    code, output, _ = run(*arguments, "--json")
    assert code == 0 and json.loads(output) == json.loads((out / "gain_cost.json").read_text())
    assert [d["name"] for d in json.loads(output)["documents"]] == ["b.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"report"}
    (out / "notes.md").write_text("mine")
    before = tree(out)
    code, _, error = run(*arguments)
    assert code == 1 and "notes.md" in error and tree(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("mine")
    code, _, error = run(*arguments[:4], "--out", tmp_path / "other", *FAST)
    assert code == 1 and "gain_cost.json" in error


def test_a_run_that_fails_at_the_end_changes_nothing(reported, checkpoint, data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no page")

    out = tmp_path / "report"
    monkeypatch.setattr(report, "render", fail)
    arguments = ["diagnose", checkpoint, "--data", data / "c.txt", "--out", out, *FAST]
    assert run(*arguments)[::2] == (1, "no page")
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(reported[0], out)
    before = tree(tmp_path)
    assert run(*arguments)[::2] == (1, "no page")
    assert tree(tmp_path) == before


def test_a_model_of_one_layer(data, tmp_path):
    """A branch with a single attention map is drawn as one picture, not a row."""
    path = save(tmp_path / "model", tiny_model(vocab_size=257, num_hidden_layers=1))
    code, _, error = run("diagnose", path, "--data", data / "c.txt", "--out", tmp_path / "out", *FAST)
    assert code == 0 and "was not drawn" not in error, error
    assert {file.name for file in (tmp_path / "out").iterdir()} == diagnose.FILES


@pytest.mark.parametrize(
    ("name", "missing"),
    [("plot_rule", "rule.png"), ("plot_attention", "attention.png"), ("plot_metrics", "metrics.png")],
)
def test_a_failed_picture_does_not_lose_the_numbers(name, missing, reported, checkpoint, data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise TypeError("no picture")

    monkeypatch.setattr(diagnostic_plots, name, fail)
    out = tmp_path / "report"
    code, output, error = run("diagnose", checkpoint, "--data", data, "--out", out, "--json", *FAST)
    assert code == 0 and f"{missing} was not drawn (TypeError: no picture)" in error
    assert {path.name for path in out.iterdir()} == diagnose.FILES - {missing}
    result = GainCost.load(out / "gain_cost.json")
    assert json.loads(output) == result.to_dict()
    assert result.metrics == GainCost.load(reported[0] / "gain_cost.json").metrics
    page = (out / "report.html").read_text()
    assert (name == "plot_metrics") != ("This picture could not be drawn" in page)


def test_a_failed_page_does_not_lose_the_numbers(checkpoint, data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise TypeError("no page")

    monkeypatch.setattr(report, "render", fail)
    out = tmp_path / "report"
    code, _, error = run("diagnose", checkpoint, "--data", data / "c.txt", "--out", out, *FAST)
    assert code == 0 and "report.html was not drawn (TypeError: no page)" in error
    assert {path.name for path in out.iterdir()} == diagnose.FILES - {"report.html"}


def test_quick_steps_that_may_fail_run_before_the_measurement(checkpoint, data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no picture")

    measured = []
    monkeypatch.setattr(diagnostics, "measure", lambda *args, **kwargs: measured.append(args))
    for command, module, name in (("diagnose", diagnostics, "attention_maps"), ("sweep", sweep, "time_rows")):
        monkeypatch.setattr(module, name, fail)
        code, _, error = run(command, checkpoint, "--data", data, "--out", tmp_path / "out")
        assert (code, error) == (1, "no picture")
    assert not measured


def broken(folder: Path) -> Path:
    model = tiny_model(vocab_size=257, num_hidden_layers=2)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    return save(folder, model)


def test_errors_are_one_line_and_leave_no_files(checkpoint, data, tmp_path):
    inputs, outputs_folder = tmp_path / "in", tmp_path / "out"
    for folder in (inputs, outputs_folder, inputs / "nothing"):
        folder.mkdir()
    (inputs / "empty.py").write_text("")
    (inputs / "bytes.bin").write_bytes(b"\xff\xfe\x00")
    (inputs / "nul.txt").write_text("a\0b")
    (inputs / "lines.jsonl").write_text('{"text": "x"}\n{"content": "y"}\n')
    dense = save(inputs / "dense", llama_of(tiny_model(vocab_size=257)))
    cases = [
        (checkpoint, inputs / "missing.py", "cannot be read"),
        (checkpoint, inputs / "empty.py", "empty.py is empty"),
        (checkpoint, inputs / "bytes.bin", "not UTF-8 text"),
        (checkpoint, inputs / "nul.txt", "NUL"),
        (checkpoint, inputs / "lines.jsonl", "Line 2 of"),
        (checkpoint, inputs / "nothing", "no text"),
        (dense, data, "not a PLT"),
        (broken(inputs / "broken"), data, "not finite"),
        (inputs / "absent", data, "no folder"),
    ]
    for command in ("diagnose", "sweep"):
        for path, files, match in cases:
            code, output, error = run(command, path, "--data", files, "--out", outputs_folder / "report", *FAST)
            assert (code, output) == (1, "") and match in error, (command, path, files, error)
            assert "\n" not in error.strip() and list(outputs_folder.iterdir()) == []
        taken = run(command, checkpoint, "--data", data, "--out", inputs, *FAST)
        parentless = run(command, checkpoint, "--data", data, "--out", tmp_path / "x" / "y", *FAST)
        a_file = run(command, checkpoint, "--data", data, "--out", inputs / "nul.txt", *FAST)
        assert [case[0] for case in (taken, parentless, a_file)] == [1, 1, 1]
        assert "does not hold an earlier result" in taken[2]
        assert "does not exist" in parentless[2] and "not a folder" in a_file[2]
        assert run(command, checkpoint, "--out", outputs_folder / "report")[0] == 2
    (inputs / "blank").write_text("")
    code, _, error = run("diagnose", checkpoint, "--data", data, "--text", inputs / "blank", "--out", tmp_path / "new")
    assert code == 1 and "blank is empty" in error


def test_a_text_of_one_token(checkpoint, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    code, _, error = run("diagnose", checkpoint, "--data", tmp_path / "a.txt", "--out", tmp_path / "out", *FAST)
    assert code == 0, error
    page = (tmp_path / "out" / "report.html").read_text()
    assert "One document was measured" in page and "NaN" not in page


def test_the_error_without_matplotlib_names_the_extra(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in ("diagnose", "sweep"):
        code, _, error = run(command, checkpoint, "--data", data, "--out", tmp_path / "out")
        assert (
            code == 1
            and error == "matplotlib is not installed: pip install '.[diagnostics]' in a checkout of iquest-plt"
        )
    assert list(tmp_path.iterdir()) == []


# -- texts -------------------------------------------------------------------------------------------------------------


def test_data_takes_all_following_files(monkeypatch):
    import typer
    from typer.testing import CliRunner

    app, seen = typer.Typer(), []

    @app.command(cls=cli_data.ManyFiles)
    def command(path: str, data: cli_data.Data, seed: int = 0):
        seen.append((path, [str(file) for file in data], seed))

    for line in ("p --data a b c --seed 3", "p --seed 3 --data a --data b c", "p --data=a --data b --data c --seed 3"):
        assert CliRunner().invoke(app, line.split()).exit_code == 0
    assert seen == [("p", ["a", "b", "c"], 3)] * 3


def test_texts_of_files_folders_and_json_lines(tmp_path):
    for name in ("in/a.py", "in/sub/b.md", "in/.hidden/c.py", "in/.d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\r\n")
    (tmp_path / "in" / "blank.py").write_text(" \n")
    (tmp_path / "in" / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "in" / "rows.jsonl").write_text('{"text": "one"}\n\n{"text": "three \\ud800"}\n')
    found = cli_data.read_texts([tmp_path / "in", tmp_path / "in" / "a.py"])
    assert list(found) == ["a.py", "rows.jsonl:1", "rows.jsonl:3", "sub/b.md"]
    assert found["a.py"] == "text of in/a.py\r\n" and found["rows.jsonl:3"] == "three ?"
    assert list(cli_data.read_texts([tmp_path / "in" / "sub" / "b.md"])) == ["b.md"]


def test_a_sample_is_drawn_by_seed_and_keeps_the_order(checkpoint):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    many = {str(i): "x" * 9 for i in range(20)}
    chosen, note = cli_data.sample(tokenizer, many, 35, 0)
    assert len(chosen) == 4 and list(chosen) == sorted(chosen, key=int)  # 10 tokens each, with the end
    assert note == "4 of 20 documents, drawn at random until they had 35 tokens."
    assert cli_data.sample(tokenizer, many, 35, 0)[0] == chosen
    assert any(cli_data.sample(tokenizer, many, 35, seed)[0] != chosen for seed in range(1, 5))
    assert cli_data.sample(tokenizer, many, 10**6, 0) == (many, "")


def test_a_long_text_is_cut_to_max_tokens(checkpoint, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    chosen, note = cli_data.sample(tokenizer, {"long": "ab" * 500, "short": "c" * 5}, 100, 0)
    assert chosen["long"] == "ab" * 49 + "a"  # and an end token
    assert note.endswith("Only the first 100 tokens of long.")
    assert cli_data.sample(tokenizer, {"a": "x" * 99}, 100, 0) == ({"a": "x" * 99}, "")
    assert cli_data.sample(tokenizer, {"a": "xyz"}, 1, 0)[0] == {"a": "x"}
    (tmp_path / "long.txt").write_text("word " * 1000)
    flags = ["--max-tokens", 50, *FAST]
    code, output, error = run("diagnose", checkpoint, "--data", tmp_path, "--out", tmp_path / "out", "--json", *flags)
    assert code == 0, error
    assert [document["tokens"] for document in json.loads(output)["documents"]] == [50]
    assert "Only the first 50 tokens of long.txt." in (tmp_path / "out" / "report.html").read_text()


def test_the_beginning_of_a_text():
    assert diagnose.beginning("abc\ndef\nghi", 9) == "abc\ndef\n"
    assert diagnose.beginning("äöü", 3) == "ä" and diagnose.beginning("abc", 3) == "abc"


# -- sweep -------------------------------------------------------------------------------------------------------------


def test_sweep_of_one_checkpoint(checkpoint, data, tmp_path):
    out = tmp_path / "sweep"
    flags = ["--max-loops", 3, "--max-length", 32, "--new-tokens", 3, "--length", 100]
    code, output, error = run("sweep", checkpoint, "--data", data, "--out", out, *flags)
    assert code == 0, error
    assert {path.name for path in out.iterdir()} == sweep.FILES
    document = json.loads((out / "sweep.json").read_text())
    rows, result = document["rows"], GainCost.from_dict(document["results"][0])
    assert [row["loops"] for row in rows] == [1, 2, 3]
    assert [row["loss"]["mean"] for row in rows] == result.metrics["loss"].mean
    assert [row["bits_per_byte"]["mean"] for row in rows] == pytest.approx(result.metrics["bits_per_byte"].mean)
    assert [row["bits_per_byte"]["low"] for row in rows] == pytest.approx(result.metrics["bits_per_byte"].low)
    assert rows[0]["time_ratio"] == 1.0 and all(row["seconds_per_token"] > 0 for row in rows)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert [row["kv_bytes_per_sequence"] for row in rows] == [model.kv_bytes_per_sequence(100, n) for n in (1, 2, 3)]
    page = (out / "sweep.md").read_text()
    assert (
        "![" in page
        and "| loops R | 1 | 2 | 3 |" in page
        and "The loss is lowest" in page
        and "The loss is lowest" in output
    )
    assert run("sweep", checkpoint, "--data", data, "--out", out, "--new-tokens", 10**6)[0] == 1
    assert json.loads((out / "sweep.json").read_text()) == document


def test_sweep_of_several_checkpoints(checkpoint, data, tmp_path):
    model = tiny_model(seed=1, vocab_size=257, num_hidden_layers=1, plt_num_loops=3)
    other = save(tmp_path / "three", model)
    arguments = ["sweep", other, checkpoint, "--data", data, "--out", tmp_path / "out", "--new-tokens", 2]
    code, output, error = run(*arguments, "--max-length", 32, "--json")
    assert code == 0, error
    document = json.loads(output)
    assert [(row["model"], row["loops"]) for row in document["rows"]] == [(str(checkpoint), 2), (str(other), 3)]
    assert len(document["results"]) == 2 and all(row["time_ratio"] > 0 for row in document["rows"])
    assert run(*arguments, "--max-loops", 2)[0] == 2
    (row,) = (line for line in (tmp_path / "out" / "sweep.md").read_text().splitlines() if "time per token" in line)
    assert row.startswith(f"| time per token over {checkpoint} with 1 loop |")


def test_a_sweep_keeps_its_numbers_if_the_picture_fails(checkpoint, data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise TypeError("no picture")

    monkeypatch.setattr(diagnostic_plots, "plot_sweep", fail)
    arguments = ["sweep", checkpoint, "--data", data / "c.txt", "--out", tmp_path / "out", "--new-tokens", 2]
    code, _, error = run(*arguments, "--max-loops", 2, "--max-length", 32)
    assert code == 0 and "sweep.png was not drawn (TypeError: no picture)" in error
    assert {path.name for path in (tmp_path / "out").iterdir()} == sweep.FILES - {"sweep.png"}
    assert "![" not in (tmp_path / "out" / "sweep.md").read_text()


def test_sweep_measures_all_models_with_the_shortest_context(checkpoint, data, tmp_path):
    short = save(tmp_path / "short", tiny_model(vocab_size=257, num_hidden_layers=1, max_position_embeddings=40))
    code, output, error = run(
        "sweep", checkpoint, short, "--data", data, "--out", tmp_path / "out", "--new-tokens", 2, "--json"
    )
    assert code == 0, error
    assert [result["settings"]["max_length"] for result in json.loads(output)["results"]] == [40, 40]
    assert "contexts of up to 40 tokens" in (tmp_path / "out" / "sweep.md").read_text()


def test_timing_continues_past_the_end_token(checkpoint):
    """A model that emits the end token at once is still timed for every token."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens tie: greedy takes the first
    model.generation_config.eos_token_id = 0
    (row,) = sweep.time_rows([(model, 2)], 10, 5, 4)
    assert row.seconds_per_token > 1e-5 and row.time_ratio > 0.1


def test_leftovers_of_a_killed_run_are_replaced(tmp_path):
    out, files = tmp_path / "out", frozenset({"a"})
    for content in (b"1", b"2"):
        for name in (".out.iquest-plt-new", ".out.iquest-plt-old"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "a").write_text("half")
        with output_folder.report_folder(out, files, "a") as folder:
            folder.write("a", [content])
        assert (out / "a").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("name", [".out.iquest-plt-new", ".out.iquest-plt-old", ".out.new", ".out.old"])
def test_foreign_folders_are_never_removed(tmp_path, name):
    out, files = tmp_path / "out", frozenset({"a"})
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    for content in (b"1", b"2"):
        try:
            with output_folder.report_folder(out, files, "a") as folder:
                folder.write("a", [content])
        except ValueError as error:
            assert "iquest-plt" in name and "in the way" in str(error)
    assert (tmp_path / name / "mine").read_text() == "mine"


def test_an_unwritable_folder_is_found_before_the_run(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot be written"):
        output_folder.check_folder(
            tmp_path / ("x" * 250), frozenset({"a"}), "a"
        )  # the name of the partial folder would be too long
    mount = tmp_path / "mount"
    mount.mkdir()
    output_folder.check_folder(mount, frozenset({"a"}), "a")
    monkeypatch.setattr(output_folder.os.path, "ismount", lambda path: path == mount)
    with pytest.raises(ValueError, match="mount point"):
        output_folder.check_folder(mount, frozenset({"a"}), "a")
    assert {path.name for path in tmp_path.iterdir()} == {"mount"}


def test_a_failed_replacement_keeps_the_earlier_folder(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", output_folder.os.rename

    def fail(source, target):
        if (Path(source).name, Path(target)) == (".out.iquest-plt-new", out):
            raise OSError(16, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(output_folder.os, "rename", fail)
    with output_folder.report_folder(out, frozenset({"a"}), "a") as folder:
        folder.write("a", [b"1"])
    with pytest.raises(ValueError, match="busy"), output_folder.report_folder(out, frozenset({"a"}), "a") as folder:
        folder.write("a", [b"2"])
    assert tree(tmp_path) == {"out/a": b"1"}


# -- the small model's report ------------------------------------------------------------------------------------------


def test_heldout_files_are_checked(tmp_path):
    import hashlib

    entries = [("kept.py", b"x = 1\n", "heldout"), ("seen.py", b"y = 2\n", "train")]
    for name, content, _ in entries:
        (tmp_path / name).write_bytes(content)
    listed = [{"path": n, "sha256": hashlib.sha256(c).hexdigest(), "split": split} for n, c, split in entries]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"python_version": "3.11.7", "files": listed}))
    assert small_report.heldout(manifest, tmp_path, ("kept.py",)) == {"kept.py": b"x = 1\n"}
    with pytest.raises(ValueError, match="trained on"):
        small_report.heldout(manifest, tmp_path, ("seen.py",))
    (tmp_path / "kept.py").write_text("x = 2\n")
    with pytest.raises(ValueError, match=r"Python 3\.11\.7"):
        small_report.heldout(manifest, tmp_path, ("kept.py",))


def test_the_shipped_report_matches_its_numbers():
    folder = ROOT / "docs" / "diagnostics"
    result = GainCost.load(folder / "gain_cost.json")
    assert [document["name"] for document in result.documents] == sorted(small_report.FILES)
    assert result.model["name"] == "checkpoints/small" and result.max_loops == 4
    page = html.unescape((folder / "report.html").read_text())
    for sentences in (
        interpretation.recommendation,
        interpretation.gain_cost,
        interpretation.loss,
        interpretation.rank,
        interpretation.motion,
    ):
        assert all(sentence in page for sentence in sentences(result)), sentences
    assert "PSF-2.0" in page and (folder / "gain_cost.csv").read_text() == report.to_csv(result)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
