# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the source of a conversion: a folder on this machine, or a repository on the Hub, which is downloaded."""

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
    HTTPError,  # what every failure of a request derives from, whichever HTTP library the Hub's client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


# What a conversion reads, in the repository's root. Never code, never pickles.
FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt", "LICENSE*", "README.md"]
NOT_FILES = ["*/*", "*.py", "*.bin", "consolidated*.safetensors"]  # the last: the same weights in another layout
ATTEMPTS = 5
SECONDS_BETWEEN = 1


def fetch(
    source: str | os.PathLike, revision: str | None = None, *, files: list[str] = FILES, check_hashes: bool = True
) -> tuple[Path, str | None]:
    """
    The folder that `source` names, and the commit it is at.

    A folder is taken as it is (commit None). Anything of the form `organisation/name` else is the id of a repository
    on the Hub: its files at `revision` (branch, tag or commit; by default the main branch) are downloaded to the Hub's
    cache, those that match one of the patterns `files`. What is there already is not downloaded again. With
    `check_hashes` every file is compared with the hash that the Hub lists for it; without a network, a repository that
    is all in the cache is taken as it is.

    Raises ValueError, in one sentence, if there is no such folder, repository or revision, if it cannot be had, or if
    it is no checkpoint.
    """
    name = os.fspath(source)
    if not name:
        raise ValueError("The source has no name: give a folder, or an id on the Hub (organisation/name).")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder, which has no revisions: leave out `revision` ({revision!r}).")
        return folder, None
    if folder.exists():
        raise ValueError(f"{name} is a file: name the folder of the checkpoint.")
    if re.fullmatch(r"[^./~\\][^/\\]*/[^/\\]+", name) is None:
        raise ValueError(
            f"There is no folder {name}, and it is no id on the Hub either (these read organisation/name)."
        )
    try:
        folder = _download(name, revision, files)
        commit = folder.name  # the cache names snapshots so
        if check_hashes:
            _check_hashes(name, folder, commit)
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(_explain(error, name, revision)) from error
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} on the Hub has no config.json: it is no checkpoint of a Transformers model.")
    return folder, commit


def _download(name: str, revision: str | None, files: list[str]) -> Path:
    """
    The snapshot in the Hub's cache. Its client goes on where a connection ended, but gives up on one that was reset: as
    often as ATTEMPTS says it is asked again, and keeps the files that are complete.
    """
    attempts = ATTEMPTS
    while True:
        attempts -= 1
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=files, ignore_patterns=NOT_FILES))
        except HfHubHTTPError:  # an answer, if not the one hoped for
            raise
        except HTTPError:
            if not attempts:
                raise
        time.sleep(SECONDS_BETWEEN)


def _check_hashes(name: str, folder: Path, commit: str) -> None:
    """Raises ValueError if a file is not what the Hub lists. The client itself compares sizes only."""
    try:
        HfApi().model_info(name, revision=commit)  # fails at once where the next call would try again and again
        wrong = HfApi().verify_repo_checksums(name, revision=commit).mismatches
    except HfHubHTTPError:
        raise
    except (HTTPError, ConnectionError):  # no network: all was in the cache
        return
    for file in wrong:
        path = folder / file["path"]
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if wrong:
        files = ", ".join(file["path"] for file in wrong)
        raise ValueError(f"{files} of {name} did not arrive as the Hub lists them and were deleted: try again.")


def _explain(error: Exception, name: str, revision: str | None) -> str:
    """What went wrong and what to do, in one sentence."""
    hub = constants.ENDPOINT
    match error:
        case GatedRepoError():  # derives from the next one
            return f"{name} is gated: accept its conditions on {hub}/{name}, then log in with `hf auth login`."
        case RepositoryNotFoundError():
            return f"There is neither a folder {name} nor such a model on {hub} (a private one needs `hf auth login`)."
        case RevisionNotFoundError():
            return f"{name} has no revision {revision!r} on {hub}: name a branch, a tag or a whole commit hash."
        case HFValidationError():
            return f"There is no folder {name}, and it is no id on the Hub either: {_one_line(error)}"
        case LocalEntryNotFoundError() if constants.is_offline_mode():
            return f"There is no folder {name}, and HF_HUB_OFFLINE forbids to download it: unset it, or name a folder."
        case LocalEntryNotFoundError():
            return f"There is no folder {name}, and {hub} cannot be reached to download it: try again with a network."
        case HfHubHTTPError():
            return f"{hub} does not give out {name}: {_one_line(error)}"
        case HTTPError():
            return f"The connection broke while {name} was downloaded ({_one_line(error)}): try again."
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"The disk of the Hub's cache, {constants.HF_HUB_CACHE}, is full: make room, or set HF_HUB_CACHE."
        case _:
            return f"{name} cannot be downloaded: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
