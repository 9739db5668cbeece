# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation site builds without a warning, has every page, and loads nothing from another server."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from paths import ROOT


pytest.importorskip("mkdocs", reason="pip install '.[docs]' in a checkout of iquest-plt")


class Page(HTMLParser):
    """What a page links to, what it loads, and the names of its elements."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids, self.tags = [], [], set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag in ("img", "script", "link", "iframe", "source", "object"):
            self.loads += [values[name] for name in ("src", "href", "data") if values.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not re.search("WARNING|ERROR", done.stdout + done.stderr)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "diagnostics/" not in str(path.relative_to(site))}


def test_every_page_is_in_the_navigation(site):
    navigation = re.findall(r"^ +- .*?([\w/-]+)\.md$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert len(navigation) > 15
    assert [name for name in navigation if not (site / f"{name}.html").is_file()] == []
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= set(navigation)


def test_every_link_leads_to_a_file_and_a_heading_of_the_site(site, pages):
    """Also those to files of the repository outside `docs`."""
    count = 0
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_relative_to(site) and target.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages and parts.fragment != "__":
                assert unquote(parts.fragment) in pages[target].ids, f"{path.relative_to(site)}: {link}"
                count += 1
    assert count > 100


def test_no_page_loads_anything_from_another_server(pages):
    loads = [link for page in pages.values() for link in page.loads]
    assert loads
    assert [link for link in loads if urlsplit(link).scheme not in ("", "data") or link.startswith("//")] == []


def test_the_api_page_shows_docstrings(site, pages):
    page = pages[site / "api.html"]
    assert {"iquest_plt.PLTCache", "iquest_plt.IQuestPLTCoderForCausalLM.forward"} <= page.ids
    text = (site / "api.html").read_text()
    assert "number of loops it serves" in text
    assert "[<code>" not in text and "*optional*" not in text  # Transformers' notation
    assert not page.tags & {"s", "del"}  # a token such as <s> in a docstring, read as HTML
