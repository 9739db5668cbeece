# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the source of a conversion: a local folder, or a repository on the Hub, which it downloads."""

import errno
import os
import re
import time
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base class of all failed requests, whichever HTTP library the Hub's client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


# The files that a conversion reads from the repository's root. Never code, never pickles.
FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt", "LICENSE*", "README.md"]
NOT_FILES = ["*/*", "*.py", "*.bin", "consolidated*.safetensors"]  # consolidated*: the same weights in another layout
ATTEMPTS = 5
SECONDS_BETWEEN = 1


def fetch(
    source: str | os.PathLike, revision: str | None = None, *, files: list[str] = FILES, check_hashes: bool = True
) -> tuple[Path, str | None]:
    """
    Returns the folder of `source`, and its commit.

    If `source` is a folder, returns it unchanged, with the commit None. Otherwise `organisation/name` is the id of a
    repository on the Hub. Its files that match one of the patterns `files` are downloaded to the Hub's cache, at
    `revision` (branch, tag or commit; the main branch by default). Files already in the cache are not downloaded again.
    With `check_hashes`, every file is compared with the Hub's hash. Without a network, a fully cached repository skips
    this check.

    Raises ValueError if the folder, repository or revision does not exist or is not accessible, or if it does not hold
    a checkpoint.
    """
    name = os.fspath(source)
    if not name:
        raise ValueError("The source is empty. Pass a folder, or an id on the Hub (organisation/name).")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder and has no revisions. Leave out `revision` ({revision!r}).")
        return folder, None
    if folder.exists():
        raise ValueError(f"{name} is a file. Pass the checkpoint's folder.")
    if re.fullmatch(r"[^./~\\][^/\\]*/[^/\\]+", name) is None:
        raise ValueError(
            f"There is no folder {name}, and it is not an id on the Hub either (those have the form organisation/name)."
        )
    try:
        folder = _download(name, revision, files)
        commit = folder.name  # the cache names snapshots by commit
        if check_hashes:
            _check_hashes(name, folder, commit)
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(_explain(error, name, revision)) from error
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} on the Hub has no config.json, so it is not a checkpoint of a Transformers model.")
    return folder, commit


def _download(name: str, revision: str | None, files: list[str]) -> Path:
    """
    Downloads a snapshot to the Hub's cache. The Hub's client resumes a connection that ended, but gives up if it was
    reset, so this makes up to ATTEMPTS attempts. Complete files are kept between them.
    """
    attempts = ATTEMPTS
    while True:
        attempts -= 1
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=files, ignore_patterns=NOT_FILES))
        except HfHubHTTPError:  # the server did answer
            raise
        except HTTPError:
            if not attempts:
                raise
        time.sleep(SECONDS_BETWEEN)


def _check_hashes(name: str, folder: Path, commit: str) -> None:
    """Raises ValueError if a file does not match the Hub's hash. The client itself compares only sizes."""
    try:
        HfApi().model_info(name, revision=commit)  # without a network, fails at once where the next call would retry
        wrong = HfApi().verify_repo_checksums(name, revision=commit).mismatches
    except HfHubHTTPError:
        raise
    except (HTTPError, ConnectionError):  # no network, so everything was in the cache
        return
    for file in wrong:
        path = folder / file["path"]
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if wrong:
        files = ", ".join(file["path"] for file in wrong)
        raise ValueError(f"{files} of {name} did not match the Hub's hashes and were deleted. Try again.")


def _explain(error: Exception, name: str, revision: str | None) -> str:
    """Returns a message that says what went wrong and what to do."""
    hub = constants.ENDPOINT
    match error:
        case GatedRepoError():  # derives from the next one
            return f"{name} is gated. Accept its conditions on {hub}/{name}, then log in with `hf auth login`."
        case RepositoryNotFoundError():
            return f"There is neither a folder {name} nor such a model on {hub} (a private one needs `hf auth login`)."
        case RevisionNotFoundError():
            return f"{name} has no revision {revision!r} on {hub}. Pass a branch, a tag or a full commit hash."
        case HFValidationError():
            return f"There is no folder {name}, and it is not an id on the Hub either: {_one_line(error)}"
        case LocalEntryNotFoundError() if constants.is_offline_mode():
            return f"There is no folder {name}, and HF_HUB_OFFLINE forbids a download. Unset it, or pass a folder."
        case LocalEntryNotFoundError():
            return f"There is no folder {name}, and {hub} cannot be reached to download it. Check the network."
        case HfHubHTTPError():
            return f"{hub} refused to send {name}: {_one_line(error)}"
        case HTTPError():
            return f"The connection broke while downloading {name} ({_one_line(error)}). Try again."
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"The disk of the Hub's cache, {constants.HF_HUB_CACHE}, is full. Free space or set HF_HUB_CACHE."
        case _:
            return f"{name} could not be downloaded: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
