"""The site builds without a warning, its links work, its pages follow the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs")


class _Page(HTMLParser):
    """Collects anchors, links and what a browser loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def site(repo_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=repo_root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {file: _Page(file) for file in folder.rglob("*.html")}
    assert len(pages) > 25
    return folder, pages


def test_links_and_anchors_lead_somewhere(site):
    folder, pages = site
    for file, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or file.name == "404.html":
                continue
            target = file
            if parts.path:
                target = (file.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            where = f"{file.relative_to(folder)}: {link}"
            assert target.is_file(), where
            if parts.fragment and target.suffix == ".html":
                ids = pages[target].ids
                known = unquote(parts.fragment) in ids
                assert known or parts.fragment.startswith("__"), where


def test_nothing_is_loaded_from_elsewhere(site):
    folder, pages = site
    for file, page in pages.items():
        for source in page.loaded:
            assert not urlsplit(source).netloc, (file.relative_to(folder), source)
    for style in folder.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", text), style


def test_names_of_python_have_documentation(site):
    folder, pages = site
    ids = pages[folder / "reference/python.html"].ids
    for name in ("prune", "SparsityConfig", "NMPattern", "sparsify", "PruneConfig"):
        assert any(found.endswith(f".{name}") for found in ids), name


@pytest.mark.parametrize("script", ["reference.py", "pictures.py"])
def test_generated_pages_and_pictures_are_those_of_the_code(repo_root, script):
    pytest.importorskip("vllm")
    command = [sys.executable, repo_root / "docs/site" / script, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_picture_has_words(repo_root):
    pages = [*repo_root.glob("docs/**/*.md"), *repo_root.glob("*.md")]
    for file in pages:
        for words in re.findall(r"!\[([^\]]*)\]\(", file.read_text(encoding="utf-8")):
            assert len(words.split()) > 1, (file, words)
