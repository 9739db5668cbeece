# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Training text: the Python standard library, and optionally packages or wheels, split by whole files.

Exact copies are dropped. Files that share much of their text (`CLUSTER_OVERLAP`) form a cluster. A cluster is held out
or trained on as a whole, so training never sees a near-duplicate of a held-out file.
"""

import fnmatch
import hashlib
import importlib.metadata
import platform
import re
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


# Generated tables and data, and files that describe the machine on which Python was built.
EXCLUDED = [
    "site-packages/*",
    "dist-packages/*",
    "_sysconfigdata*",
    "config-*",
    "encodings/cp*",
    "encodings/iso8859*",
    "encodings/koi8*",
    "encodings/mac_*",
    "encodings/kz1048.py",
    "encodings/ptcp154.py",
    "encodings/hp_roman8.py",
    "encodings/tis_620.py",
    "encodings/aliases.py",
    "pydoc_data/topics.py",
    "lib2to3/tests/data/*",
    "test/cjkencodings/*",
    "pygments/lexers/_*",
    "pygments/unistring.py",
]
# Packages with permissive licences, and these licences. All are installed with the `training` extra.
PACKAGES = {
    "accelerate": "Apache-2.0",
    "fsspec": "BSD-3-Clause",
    "huggingface_hub": "Apache-2.0",
    "jinja2": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "peft": "Apache-2.0",
    "pygments": "BSD-2-Clause",
    "rich": "MIT",
}
# Wheels with permissive licences, which need not be installed. Most contain tests, as the standard library does.
WHEELS = {
    "aiohttp==3.14.5": "Apache-2.0",
    "bokeh==3.9.2": "BSD-3-Clause",
    "celery==5.7.0": "BSD-3-Clause",
    "dask==2026.8.0": "BSD-3-Clause",
    "distributed==2026.8.0": "BSD-3-Clause",
    "django==5.2.19": "BSD-3-Clause",
    "fastapi==0.165.0": "MIT",
    "flask==3.1.3": "BSD-3-Clause",
    "ipython==9.18.1": "BSD-3-Clause",
    "keystone==30.0.0": "Apache-2.0",
    "lark==1.3.1": "MIT",
    "mypy==2.4.1": "MIT",
    "nltk==3.10.4": "Apache-2.0",
    "nova==34.0.0": "Apache-2.0",
    "numpy==2.4.6": "BSD-3-Clause",
    "poetry==2.5.1": "MIT",
    "pydantic==2.14.4": "MIT",
    "pymongo==4.20.1": "Apache-2.0",
    "pytest==9.2.0": "MIT",
    "redis==8.1.0": "MIT",
    "requests==2.34.2": "Apache-2.0",
    "scrapy==2.19.0": "BSD-3-Clause",
    "setuptools==84.2.1": "MIT",
    "sphinx==9.0.4": "BSD-2-Clause",
    "sqlalchemy==2.1.9": "MIT",
    "swift==2.38.3": "Apache-2.0",
    "testtools==2.9.1": "MIT",
    "tornado==6.6.1": "Apache-2.0",
    "twisted==26.10.0": "MIT",
    "websockets==17.4": "BSD-3-Clause",
    "werkzeug==3.1.9": "BSD-3-Clause",
    "xarray==2026.9.0": "Apache-2.0",
}
HELDOUT_SHARE = 0.06  # of the clusters
SHINGLE = 8  # code tokens per shingle
SKETCH = 8  # one in SKETCH shingle hashes is kept
CLUSTER_OVERLAP = 0.4  # shared share of the smaller file's shingles from which two files form a cluster
DUPLICATE_OVERLAP = 0.9  # share from which the smaller file is dropped as a copy
MIN_BYTES = 64


@dataclass
class Document:
    """One source file. `path` is relative to the standard library or site-packages; `split` "train" or "heldout"."""

    path: str
    text: str
    split: str = "train"

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def collect(root: str | Path | None = None, packages: Sequence[str] = ()) -> list[Document]:
    """
    Reads the UTF-8 .py files under `root` (default: the running Python's library) and those of installed `packages`,
    sorted by path.

    Raises:
        ValueError: if a package is not one of `PACKAGES` or is not installed.
    """
    root = Path(root or sysconfig.get_path("stdlib"))
    files = {file.relative_to(root).as_posix(): file for file in root.rglob("*.py")}
    for name in packages:
        files |= {file.as_posix(): Path(file.locate()) for file in _distribution(name).files if file.suffix == ".py"}  # type: ignore[union-attr]
    return _documents((path, file.read_bytes()) for path, file in sorted(files.items()) if not _is_excluded(path))


def collect_wheels(requirements: Sequence[str], folder: Path) -> list[Document]:
    """
    Downloads the wheels `requirements` ("name==version") with pip into `folder` and reads their .py files.

    Raises:
        ValueError: if a requirement is not one of `WHEELS`, or the download failed.
    """
    unknown = sorted(set(requirements) - set(WHEELS))
    if unknown:
        raise ValueError(f"The licence of {unknown[0]!r} may not permit training: choose from {', '.join(WHEELS)}.")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    if subprocess.run([*command, "--dest", str(folder), *requirements]).returncode != 0:
        raise ValueError(f"The download of {', '.join(requirements)} failed: see pip's message above.")
    contents = {}
    for file in folder.glob("*.whl"):
        with zipfile.ZipFile(file) as wheel:
            paths = [path for path in wheel.namelist() if path.endswith(".py") and not _is_excluded(path)]
            contents |= {path: wheel.read(path) for path in paths}
    return _documents(sorted(contents.items()))


def _is_excluded(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in EXCLUDED)


def _documents(contents: Iterable[tuple[str, bytes]]) -> list[Document]:
    """Decodes files as UTF-8; leaves out those that are not, and very short ones."""
    documents = []
    for path, content in contents:
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        if len(text) >= MIN_BYTES:
            documents.append(Document(path, text))
    return documents


def _distribution(name: str) -> importlib.metadata.Distribution:
    if name not in PACKAGES:
        raise ValueError(f"The licence of {name!r} may not permit training: choose from {', '.join(PACKAGES)}.")
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"The data include {name}, which is not installed: pip install {name}") from None


def sketch(text: str) -> set[int]:
    """Returns a sample of the text's shingle hashes. A shingle is sampled in all texts that contain it, or in none."""
    tokens = np.array([zlib.crc32(word.encode()) for word in re.findall(r"\w+|[^\w\s]", text)], dtype=np.uint64)
    if len(tokens) < SHINGLE:
        return set()
    hashes = np.zeros(len(tokens) - SHINGLE + 1, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + tokens[offset : offset + len(hashes)]
        hashes ^= hashes >> np.uint64(29)
    return set(hashes[hashes % np.uint64(SKETCH) == 0].tolist())


def overlaps(sketches: list[set[int]]) -> dict[tuple[int, int], float]:
    """Returns the share of the smaller sketch found in the larger, for every pair (i < j) that overlaps."""
    holders = defaultdict(list)
    for index, hashes in enumerate(sketches):
        for value in hashes:
            holders[value].append(index)
    # A shingle in many files is boilerplate, such as a licence header, and no sign of copying.
    shared = Counter()
    for indices in holders.values():
        if len(indices) <= 20:
            shared.update((i, j) for n, i in enumerate(indices) for j in indices[n + 1 :])
    return {(i, j): count / min(len(sketches[i]), len(sketches[j])) for (i, j), count in shared.items()}


def split(documents: list[Document], heldout_share: float = HELDOUT_SHARE) -> list[Document]:
    """Drops copies and sets `split` of the others by a hash of the first path in each cluster."""
    documents = list({document.sha256: document for document in reversed(documents)}.values())[::-1]
    pairs = overlaps([sketch(document.text) for document in documents])
    parent = list(range(len(documents)))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    dropped = set()
    for (i, j), overlap in sorted(pairs.items()):
        if overlap >= CLUSTER_OVERLAP:
            low, high = sorted((find(i), find(j)))
            parent[high] = low
        if overlap >= DUPLICATE_OVERLAP:
            dropped.add(min(i, j, key=lambda index: (documents[index].num_bytes, -index)))
    for index, document in enumerate(documents):
        digest = hashlib.sha256(documents[find(index)].path.encode()).digest()
        document.split = "heldout" if int.from_bytes(digest[:8], "big") < heldout_share * 2**64 else "train"
    return [document for index, document in enumerate(documents) if index not in dropped]


def without_overlap(documents: list[Document], others: list[Document]) -> list[Document]:
    """
    Returns the `documents` that may be trained on beside `others`, which are already split: no copies of any of them,
    and none that would be in a cluster with a held-out one.
    """
    known = {document.sha256 for document in others}
    new = {document.sha256: document for document in reversed(documents) if document.sha256 not in known}
    combined = others + list(new.values())[::-1]
    dropped = set()
    for (i, j), overlap in overlaps([sketch(document.text) for document in combined]).items():
        limit = CLUSTER_OVERLAP if combined[i].split == "heldout" else DUPLICATE_OVERLAP
        if overlap >= limit:
            dropped.add(j)
    return [combined[index] for index in range(len(others), len(combined)) if index not in dropped]


def manifest(documents: list[Document], packages: Sequence[str] = (), wheels: Sequence[str] = ()) -> dict:
    """Describes the data: sources, licences, totals, and bytes, hash and split of each file."""
    totals = {
        name: {
            "files": sum(document.split == name for document in documents),
            "bytes": sum(document.num_bytes for document in documents if document.split == name),
        }
        for name in ("train", "heldout")
    }
    return {
        "source": "Python standard library, .py files",
        "python_version": platform.python_version(),
        "licence": "PSF-2.0",
        "packages": [
            {"name": name, "version": _distribution(name).version, "licence": PACKAGES[name]} for name in packages
        ],
        "wheels": [
            {"name": wheel.split("==")[0], "version": wheel.split("==")[1], "licence": WHEELS[wheel]}
            for wheel in wheels
        ],
        "excluded": EXCLUDED,
        "cluster_overlap": CLUSTER_OVERLAP,
        "totals": totals,
        "files": [{"path": d.path, "bytes": d.num_bytes, "sha256": d.sha256, "split": d.split} for d in documents],
    }


def token_stream(token_lists: list[list[int]], end_token_id: int) -> np.ndarray:
    """Returns one uint16 array: each document's ids followed by `end_token_id`."""
    return np.concatenate([np.array([*ids, end_token_id], dtype=np.uint16) for ids in token_lists])


class PackedRows:
    """A map-style dataset of training rows cut from a token stream.

    Row `index` belongs to pass `index // rows_per_pass` over the stream. Each pass has its own offset and row order,
    which depend only on `seed`, so a resumed run sees the same rows. Rows are contiguous slices: only an end token
    separates documents, and attention may cross it.
    """

    def __init__(self, stream: np.ndarray, length: int, num_rows: int, seed: int = 0):
        self.stream, self.length, self.num_rows, self.seed = stream, length, num_rows, seed
        self.rows_per_pass = (len(stream) - length) // length
        if self.rows_per_pass < 1:
            raise ValueError(f"A stream of {len(stream)} tokens is too short for a row of {length}. Use more data.")
        self._pass = (-1, 0, np.empty(0, dtype=int))

    def __len__(self) -> int:
        return self.num_rows

    def start(self, index: int) -> int:
        """Returns where row `index` starts in the stream."""
        number, row = divmod(index, self.rows_per_pass)
        if self._pass[0] != number:
            rng = np.random.default_rng([self.seed, number])
            self._pass = (number, int(rng.integers(self.length)), rng.permutation(self.rows_per_pass))
        _, offset, order = self._pass
        return offset + int(order[row]) * self.length

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        start = self.start(index)
        return {"input_ids": self.stream[start : start + self.length].astype(np.int64).tolist()}
