"""Documents in both forms."""

import base64

import pandas as pd

from stellarperceptron.utils.document import Document, markdown_table

PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_tables_are_markdown():
    frame = pd.DataFrame({"": ["a|b"], "x": [1]})
    assert markdown_table(frame) == "|  | x |\n| :-- | --: |\n| a\\|b | 1 |\n"


def test_pages_need_no_other_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(PICTURE)
    document = Document("Title")
    document.figure(tmp_path / "a" / "b.png", 'A "figure"')
    page = document.html()
    assert base64.b64encode(PICTURE).decode() in page
    assert "http" not in page and "b.png" not in page
    assert '![A "figure"](a/b.png)' in document.markdown(tmp_path)


def test_text_is_never_markup():
    document = Document("a < b")
    document.text("`x < y` and **bold** & <script>")
    document.details("settings", "<b>")
    page = document.html()
    assert "<code>x &lt; y</code> and <strong>bold</strong> &amp; &lt;script&gt;" in page
    assert "<pre>&lt;b&gt;</pre>" in page and "<title>a &lt; b</title>" in page
