"""MkDocs' hook for the pages that stand at the repository's root, and for links that lead out of docs/.

README, ARCHITECTURE, CONTRIBUTING and CHANGELOG belong at the root, where people and code hosts look for them; the site shows them as
pages of its own. A link to a file of the repository that is no page of the site becomes plain text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File at the root of the repository -> its page on the site."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the files of docs/ and the root's pages."""
    root = Path(config.config_file_path).parent
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Return the page with its links as the site has them."""
    site_path = page.file.src_uri
    at_root = {page: source for source, page in ROOT_PAGES.items()}
    repository_path = at_root.get(site_path, f"docs/{site_path}")

    def relink(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups(default="")
        if not target or "://" in target or target.startswith("mailto:"):
            return match.group()
        in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path), target))
        on_site = ROOT_PAGES.get(in_repository, in_repository.removeprefix("docs/"))
        if files.get_file_from_path(on_site) is None:
            return text
        return f"{picture}[{text}]({posixpath.relpath(on_site, posixpath.dirname(site_path) or '.')}{anchor})"

    return _LINK.sub(relink, markdown)
