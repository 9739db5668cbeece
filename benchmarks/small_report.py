# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Makes the small model's report in `docs/diagnostics` again, on files of Python's standard library that were held out of
training. Each file is checked against its hash in the data manifest. With `--family`, makes the sweep over the tiny
family in `docs/family`, on the starts of held-out files.

    python -m iquest_plt.benchmarks.small_report [--family]
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

from ..cli import main as iquest_plt
from ..training.evaluate import heldout_documents


ROOT = Path(__file__).parents[1]
SMALL = ROOT / "checkpoints" / "small"
FAMILY = ROOT / "checkpoints" / "family"
STARTS, CHARACTERS = 43, 2000  # as in `training.family`
FILES = (  # library and tests, with and without documentation
    "copyreg.py",
    "ctypes/test/test_strings.py",
    "distutils/command/install_headers.py",
    "email/__init__.py",
    "encodings/charmap.py",
    "lib2to3/fixes/fix_itertools_imports.py",
    "multiprocessing/popen_spawn_posix.py",
    "sched.py",
    "secrets.py",
    "test/test_email/test_pickleable.py",
    "token.py",
    "unittest/signals.py",
)
SHOWN = "sched.py"  # in the lens


def heldout(manifest: Path, library: Path, paths: tuple[str, ...] = FILES) -> dict[str, bytes]:
    """
    Reads the files `paths` of `library`. Raises ValueError if one is missing, differs from the manifest, or was not
    held out.
    """
    document = json.loads(manifest.read_text())
    known = {entry["path"]: entry for entry in document["files"]}
    found = {}
    for path in paths:
        if known[path]["split"] != "heldout":
            raise ValueError(f"{path} was trained on. Choose another file.")
        file = library / path
        found[path] = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(found[path]).hexdigest() != known[path]["sha256"]:
            raise ValueError(
                f"{path} of Python {platform.python_version()} differs from the file that was held out. Run this with "
                f"Python {document['python_version']}."
            )
    return found


def write(folder: Path, texts: dict[str, bytes]) -> None:
    """Writes each text to its path in `folder`."""
    for path, content in texts.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def diagnose_small(folder: Path, library: Path, max_loops: str, out: str) -> list[str]:
    """Writes the texts to `folder` and returns the command. Raises ValueError if they are not the held-out ones."""
    write(folder, heldout(SMALL / "data_manifest.json", library))
    version = json.loads((SMALL / "data_manifest.json").read_text())["python_version"]
    note = f"The texts are files of the standard library of Python {version}, held out of training; licence PSF-2.0."
    options = ["--text", str(folder / SHOWN), "--name", "checkpoints/small", "--note", note]
    return ["diagnose", str(SMALL), "--data", str(folder), *options, "--max-loops", max_loops, "--out", out]


def sweep_family(folder: Path, library: Path, out: str) -> list[str]:
    """Does the same for the family. The packages of the family's data must be installed."""
    try:
        documents = heldout_documents(json.loads((FAMILY / "data_manifest.json").read_text()), library)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    chosen = documents[:: -(-len(documents) // STARTS)]
    write(folder, {document.path: document.text[:CHARACTERS].encode() for document in chosen})
    paths = sorted(os.path.relpath(path.parent) for path in FAMILY.glob("r*/config.json"))
    return ["sweep", *paths, "--data", str(folder), "--max-length", "512", "--out", out]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="store_true", help="make the family's sweep instead")
    parser.add_argument("--out", help="folder of the report; default: the one in docs")
    parser.add_argument("--max-loops", default="4")
    stdlib = sysconfig.get_path("stdlib")
    parser.add_argument("--library", dest="stdlib", type=Path, default=stdlib, help="folder of the standard library")
    arguments = parser.parse_args(argv)
    docs, library = ROOT / "docs", Path(arguments.stdlib)
    if not SMALL.is_dir():
        parser.error("The checkpoints are not part of the installed package. Run this in a checkout.")
    with tempfile.TemporaryDirectory() as folder:
        try:
            if arguments.family:
                command = sweep_family(Path(folder), library, arguments.out or str(docs / "family"))
            else:
                command = diagnose_small(
                    Path(folder), library, arguments.max_loops, arguments.out or str(docs / "diagnostics")
                )
        except ValueError as error:
            parser.error(str(error))
        sys.argv = ["iquest-plt", *command]
        iquest_plt()


if __name__ == "__main__":
    main()
