"""What MkDocs does beyond its configuration.

Pages are written for the repository: they link to files outside docs/, and in tables
they escape the pipes of code. Here the Markdown files outside docs/ become pages under
``project/``, links follow them, and links to files that are no page become plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
# Markdown files outside docs/ that are pages of the site, if they exist.
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "kernels/README.md",
    "vllm_sparse/patches.md",
    "deploy/README.md",
)
_FENCE = re.compile(r"^\s*(```|~~~)")
_LINK = re.compile(
    r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)"
)
_IMAGE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"`[^`\n]*`")
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):(?=<code>)")
_ROW = re.compile(r"^\|.*$", re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files of ``OUTSIDE`` as pages."""
    for name in OUTSIDE:
        source = ROOT / name
        if source.is_file():
            text = source.read_text(encoding="utf-8")
            files.append(File.generated(config, f"project/{name}", content=text))
    return files


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Make links and tables those of the site; fenced code stays as it is."""
    made = []
    for fenced, part in _parts(markdown):
        made.append(part if fenced else _site(part, page.file.src_uri))
    return "".join(made)


def _parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """Yield fenced code and what is between."""
    fenced, part = False, ""
    for line in markdown.splitlines(keepends=True):
        if _FENCE.match(line):
            if fenced:
                yield True, part + line
                part = ""
            else:
                yield False, part
                part = line
            fenced = not fenced
        else:
            part += line
    yield fenced, part


def on_page_content(html: str, **_: object) -> str:
    """Remove Sphinx' roles, which docstrings have before names."""
    return _ROLE.sub("", html)


def repository_path(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    return uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"


def _site(text: str, uri: str) -> str:
    """Return text without fenced code as the site needs it."""

    def link(match: re.Match[str]) -> str:
        target = _target(match["target"], uri)
        return match["text"] if target is None else f"[{match['text']}]({target})"

    def image(match: re.Match[str]) -> str:
        target = _target(match["target"], uri)
        return match["text"] if target is None else f"![{match['text']}]({target})"

    # Python-Markdown keeps the backslash of a pipe within code.
    text = _ROW.sub(lambda row: _CODE.sub(_unescape, row[0]), text)
    # It nests a list by four columns.
    text = re.sub(r"^   ([*-] )", r"    \1", text, flags=re.MULTILINE)
    return _LINK.sub(link, _IMAGE.sub(image, text))


def _unescape(match: re.Match[str]) -> str:
    return match[0].replace(r"\|", "|")


def _target(target: str, uri: str) -> str | None:
    """Return a link's target on the site; None if it is no page."""
    if re.match(r"[a-z]+:|#", target):
        return target
    path, _, anchor = target.partition("#")
    folder = posixpath.dirname(repository_path(uri))
    found = posixpath.normpath(posixpath.join(folder, path))
    if found.startswith("docs/") and not (ROOT / found).is_dir():
        found = found.removeprefix("docs/")
    elif found in OUTSIDE:
        found = f"project/{found}"
    else:
        return None
    found = posixpath.relpath(found, posixpath.dirname(uri) or ".")
    return f"{found}#{anchor}" if anchor else found
