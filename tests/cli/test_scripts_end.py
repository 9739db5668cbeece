# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""How scripts end: one line for expected errors and Ctrl-C, a traceback for anything else."""

import pytest

from iquest_plt.utils.scripts import NO_CHECKPOINT, RESUME, RESUME_CHECKPOINT, one_line_errors


class Diverged(RuntimeError):
    pass


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, Diverged])
def test_expected_errors_print_one_safe_line(error):
    with pytest.raises(SystemExit) as raised, one_line_errors(Diverged):
        raise error("first\n  second \x1b[31m")
    assert raised.value.code == "error: first second \\x1b[31m"


def test_other_errors_pass():
    with pytest.raises(Diverged), one_line_errors():
        raise Diverged


@pytest.mark.parametrize("advice, said", [(RESUME, RESUME), (lambda: "Wait.", "Wait.")])
def test_ctrl_c_says_how_to_resume(advice, said, capsys):
    with pytest.raises(SystemExit) as raised, one_line_errors(advice=advice):
        raise KeyboardInterrupt
    assert raised.value.code == 130
    assert capsys.readouterr().err == f"\nInterrupted. {said}\n"


def test_ctrl_c_promises_nothing_where_nothing_resumes(capsys):
    with pytest.raises(SystemExit, match="130"), one_line_errors():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "\nInterrupted.\n"


@pytest.mark.parametrize("options, advice", [([], RESUME_CHECKPOINT), (["--gpu"], NO_CHECKPOINT)])
def test_small_training_resumes_only_where_it_saves(options, advice, monkeypatch, capsys):
    small = pytest.importorskip("iquest_plt.training.small", reason="pip install '.[training]'")

    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("train", "train_on_gpu"):
        monkeypatch.setattr(small, name, interrupted)
    with pytest.raises(SystemExit, match="130"):
        small.main(options)
    assert capsys.readouterr().err == f"\nInterrupted. {advice}\n"
