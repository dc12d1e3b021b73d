"""Pages of the documentation: their links, their place in the site, and what the reference names.

`make docs` checks more of this, but needs the extra `docs`.
"""

import json
import pkgutil
import re

import pytest
from chain import ROOT

SKIPPED = {".venv", "build", "runs", "shared", ".pytest_cache", ".git"}
PAGES = sorted(
    path
    for kind in ("md", "ipynb")
    for path in ROOT.rglob(f"*.{kind}")
    if not SKIPPED & set(path.relative_to(ROOT).parts)
)
REFERENCE = ROOT / "docs" / "reference"


def text_of(path):
    """Text of a page; of a notebook, that of its cells of text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(path))
    local = [link for link in links if not link.startswith(("http", "data:"))]
    assert [link for link in local if not (path.parent / link).is_file()] == []


def is_page(path):
    """Whether a file is no caption beside its picture, nor the card that `model.card` shows."""
    return path.name != "card.md" and not path.with_suffix(".png").exists()


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT).as_posix() for path in PAGES if is_page(path)}
    assert {page for page in pages if page not in site} == set()


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.md")), ids=lambda path: path.stem)
def test_the_reference_names_what_there_is(path):
    names = re.findall(r"^::: (\S+)$", text_of(path), re.MULTILINE)
    assert names
    for name in names:
        assert pkgutil.resolve_name(name).__doc__
