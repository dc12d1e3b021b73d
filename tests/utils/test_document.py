"""Documents in both forms."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stellarperceptron.utils.document import Document, markdown_table

PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


# The widest row of a run's report, and the longest of its claims.
STAR = {
    "": "2M17335483-2753043",
    "file": "aspcapStar",
    "S/N": "154",
    "Teff [K]": "3654 ± 127 (3677)",
    "log g [dex]": "0.90 ± 0.11 (0.53)",
    "[O/Fe] [dex]": "+0.07 ± 0.02",
    "[Mg/Fe] [dex]": "+0.01 ± 0.02",
    "[Fe/H] [dex]": "+0.17 ± 0.07 (−0.29)",
    "class": "giant (giant)",
    "flags": "CONTINUUM SHIFTED EDGE",
}
CLAIM = {
    "": "[Fe/H] from 100 stars: RMSE over that of a network from scratch, at [Fe/H] < −1: below "
    "two thirds",
    "here": "0.212 / 0.708 = 0.30",
    "paper": "0.30",
    "holds": "yes",
}
FAILURE = {"file": "apStar.fits", "reason": "only 4 of the 3,757 pixels are good " * 6}


def embedded(page):
    """The first picture of a page."""
    data = re.search(r"data:image/webp;base64,([^\"]+)", page).group(1)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_tables_are_markdown():
    frame = pd.DataFrame({"": ["a|b"], "x": [1]})
    assert markdown_table(frame) == "|  | x |\n| :-- | --: |\n| a\\|b | 1 |\n"


def test_pages_need_no_other_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(PICTURE)
    document = Document("Title")
    document.figure(tmp_path / "a" / "b.png", 'A "figure"')
    page = document.html()
    assert embedded(page).size == (1, 1)
    assert "http" not in page and "b.png" not in page
    assert '![A "figure"](a/b.png)' in document.markdown(tmp_path)


def test_text_is_never_markup():
    document = Document("a < b")
    document.text("`x < y` and **bold** & <script>")
    document.details("settings", "<b>")
    page = document.html()
    assert "<code>x &lt; y</code> and <strong>bold</strong> &amp; &lt;script&gt;" in page
    assert "<pre>&lt;b&gt;</pre>" in page and "<title>a &lt; b</title>" in page


def test_figures_are_no_larger_than_a_screen_needs(tmp_path):
    lines = np.full((300, 3000, 3), 255, dtype=np.uint8)
    lines[::7, :, 0] = np.random.default_rng(0).integers(0, 255, 3000)
    Image.fromarray(lines).save(tmp_path / "a.png")
    document = Document("Title")
    document.figure(tmp_path / "a.png", "A figure")
    page = document.html()
    assert embedded(page).size == (2368, 237)


@pytest.mark.browser
def test_tables_are_seen_whole_in_a_browser(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    document = Document("Title")
    for row in (STAR, CLAIM, FAILURE):
        document.table(pd.DataFrame([row]), "A caption.")
    measure = """<script>document.title = JSON.stringify(
      [...document.querySelectorAll("table")].map(table => [
        table.getBoundingClientRect().right,
        table.querySelector("td").getBoundingClientRect().height]))</script>"""
    page = tmp_path / "page.html"
    page.write_text(document.html().replace("</body>", f"{measure}</body>"), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    title = html.unescape(re.search("<title>(.*?)</title>", shown).group(1))
    (star, claim, failure) = json.loads(title)
    edge = 1280 - 24  # the page's margin
    assert star[0] < edge and claim[0] < edge and failure[0] < edge
    assert claim[1] < 60  # a long first column has two lines at most
