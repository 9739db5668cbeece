# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0

"""Setup for all tests: no network, no leftovers between runs, one seed. Runs before Transformers is imported."""

import os
import sysconfig
import tempfile
from pathlib import Path


_remote_code = tempfile.TemporaryDirectory(prefix="iquest-plt-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = _remote_code.name  # Transformers copies remote code there
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402
import torch  # noqa: E402


# The tests' models are too small to gain from more threads, and parallel test processes compete for cores.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


class RootIsNotAPackage:
    """Prevents pytest from importing the repository root as a second package, named after its folder.

    The root has an `__init__.py` because it is the package `iquest_plt`. pytest imports the `__init__.py` of every
    directory above a test, which would load all modules again and register their classes twice.
    """

    def __init__(self, root):
        self.root = root

    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == self.root else None


def pytest_configure(config):
    pytest.register_assert_rewrite("finetuning")  # its assertions then show values, like those of tests
    config.pluginmanager.register(RootIsNotAPackage(config.rootpath))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """A stand-in for a standard library: this package's sources, with a copy and an edited copy of one file."""
    root = Path(__file__).resolve().parents[1]
    folder = tmp_path_factory.mktemp("library")
    tests = sorted(path.relative_to(root) for path in (root / "tests").iterdir() if path.is_dir())
    for part in (".", "training", "tokenization", "tests", *tests):
        (folder / part).mkdir(exist_ok=True)
        for file in (root / part).glob("*.py"):
            (folder / part / file.name).write_text(file.read_text())
    text = (root / "modeling_plt.py").read_text()
    (folder / "copied.py").write_text(text)
    (folder / "edited.py").write_text(text[: len(text) * 2 // 3] + "\n# the end is missing\n")
    (folder / "latin1.py").write_bytes(b"# -*- coding: latin-1 -*-\n# caf\xe9 and more text to be long enough\n")
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "other.py").write_text("x = 1\n" * 100)
    return folder


@pytest.fixture(scope="session")
def spm_tokenizer(tmp_path_factory):
    """A small converted SentencePiece tokenizer, whose decoder drops a leading space."""
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="pip install '.[conversion]' in a checkout of iquest-plt"
    )
    from transformers import PreTrainedTokenizerFast

    from iquest_plt.tokenization import spm

    path = tmp_path_factory.mktemp("spm")
    library = Path(sysconfig.get_path("stdlib"))
    (path / "text").write_text("\n".join((library / f"{name}.py").read_text() for name in ("ast", "argparse")))
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "text"),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return PreTrainedTokenizerFast(tokenizer_object=spm.convert(path / "tokenizer.model"))
