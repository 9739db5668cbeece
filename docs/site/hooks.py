# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Hooks of MkDocs, for the layout of this repository.

* Pages link to files of the repository outside `docs`, such as `../benchmarks/results/x.md`. On the site, such a file
  becomes a page or a download under `repository/`, so that the links work there too.
* The root of the repository is the package `iquest_plt`, whatever the name of its folder. mkdocstrings looks for a
  folder of that name, so it gets one with links to the code.
"""

import posixpath
import re
import tempfile
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File


FOLDER = "repository/"  # of these files on the site
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")  # in Markdown, without the heading


_package = tempfile.TemporaryDirectory(prefix="iquest-plt-docs-")


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config):
    """Makes the folder `iquest_plt` with links to the modules and packages, and lets mkdocstrings search it."""
    root = Path(config.docs_dir).parent
    package = Path(_package.name) / "iquest_plt"
    package.mkdir(exist_ok=True)
    for path in (*root.glob("*.py"), *(init.parent for init in root.glob("*/__init__.py"))):
        if not (package / path.name).exists():
            (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_package.name]
    return config


def repository_path(uri: str) -> str:
    """Returns the path in the repository of a file of the site."""
    return uri.removeprefix(FOLDER) if uri.startswith(FOLDER) else f"docs/{uri}"


def site_uri(path: str) -> str:
    """Returns the place on the site of a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{FOLDER}{path}"


def resolve(uri: str, link: str) -> str:
    """Returns the path in the repository that a page of the site links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(uri)), link))


def on_files(files, config):
    """Adds the files outside `docs` that the navigation or a page names, and those that these name."""
    root = Path(config.docs_dir).parent
    named = re.findall(rf"{FOLDER}[\w./-]+", str(config.nav))
    waiting = [file.src_uri for file in files.documentation_pages()] + named
    while waiting:
        uri = waiting.pop()
        if files.get_file_from_path(uri) is None and (root / repository_path(uri)).is_file():
            files.append(File.generated(config, uri, abs_src_path=str(root / repository_path(uri))))
            is_new = True
        else:
            is_new = files.get_file_from_path(uri) is not None and not uri.startswith(FOLDER)
        if is_new and uri.endswith(".md"):
            links = LINK.findall((root / repository_path(uri)).read_text())
            waiting += [site_uri(resolve(uri, link)) for link in links if not resolve(uri, link).startswith("docs/")]
    return files


def on_page_markdown(markdown, page, config, files):
    """Points the page's links to where the files are on the site. The search covers only the manual."""
    if page.file.src_uri.startswith(f"{FOLDER}benchmarks/"):
        page.meta["search"] = {"exclude": True}

    def replace(match: re.Match) -> str:
        target = site_uri(resolve(page.file.src_uri, match[1]))
        if files.get_file_from_path(target) is None:
            return match[0]
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(replace, markdown)
