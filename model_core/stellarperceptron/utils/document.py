"""Documents with headings, paragraphs, tables and figures, as Markdown and as one HTML file."""

import base64
import html
import io
import os
import re
from pathlib import Path

import pandas as pd
from PIL import Image

__all__ = ["Document", "markdown_table"]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 74rem; margin: 2.5rem auto; padding: 0 1.5rem; }}
h1 {{ font-size: 1.9rem; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.35rem; margin: 2.8rem 0 .6rem; border-bottom: 1px solid #ddd; }}
h3 {{ font-size: 1.05rem; margin: 1.6rem 0 .3rem; }}
p {{ max-width: 52rem; }}
figure {{ margin: 1.2rem 0; }}
figure img {{ max-width: 100%; height: auto; display: block; }}
figcaption, caption {{ color: #555; font-size: .9rem; text-align: left; max-width: 52rem;
  padding: .4rem 0; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin: .8rem 0; }}
th, td {{ padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e8e8e8; }}
td {{ white-space: nowrap; }}
td:first-child, td.text {{ white-space: normal; }}
th {{ border-bottom: 2px solid #999; font-weight: 600; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
td:last-child, th:last-child {{ padding-right: 0; }}
pre {{ font-size: .8rem; background: #f6f6f6; padding: 1rem; overflow-x: auto; }}
code {{ font-size: .9em; background: #f2f2f2; padding: .1em .3em; }}
summary {{ cursor: pointer; margin: .4rem 0; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def markdown_table(frame: pd.DataFrame) -> str:
    """A table as Markdown, with the first column left-aligned and the others right-aligned."""
    rows = [frame.columns, [":--"] + ["--:"] * (frame.shape[1] - 1), *frame.to_numpy()]
    cells = [[str(cell).strip().replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _inline(text: str) -> str:
    """Text with `code` and **bold** as HTML."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _cell(text: str) -> str:
    """Cell of a table; numbers stay on one line, words need not."""
    kind = "" if len(text) < 40 and re.search(r"\d", text) else ' class="text"'
    return f"<td{kind}>{_inline(text)}</td>"


# A page is up to 1,184 CSS pixels wide (74rem): two pixels of a sharp screen for each.
_FIGURE_WIDTH = 2 * 1184


def _embedded(path: Path) -> str:
    """A picture as a data URL: in WebP, a quarter of the size of PNG, no wider than the page."""
    with Image.open(path) as picture:
        figure = picture.convert("RGB")
    figure.thumbnail((_FIGURE_WIDTH, figure.height))
    stored = io.BytesIO()
    figure.save(stored, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"


class Document:
    """A document in Markdown and HTML; parts appear in the order in which they are added.

    Parameters
    ----------
    title
        Heading of the document.
    """

    def __init__(self, title: str):
        self.title = title
        self._markdown: list[str] = [f"# {title}\n"]
        self._html: list[str] = [f"<h1>{_inline(title)}</h1>"]
        self._figures: list[Path] = []

    def heading(self, text: str, level: int = 2) -> None:
        """Begin a section (level 2) or a part of one (level 3)."""
        self._markdown.append(f"{'#' * level} {text}\n")
        self._html.append(f"<h{level}>{_inline(text)}</h{level}>")

    def text(self, text: str) -> None:
        """Add a paragraph; `code` and **bold** are understood."""
        self._markdown.append(f"{text}\n")
        self._html.append(f"<p>{_inline(text)}</p>")

    def table(self, frame: pd.DataFrame, caption: str = "") -> None:
        """Add a table of texts or numbers as they are."""
        self._markdown.append((f"{caption}\n\n" if caption else "") + markdown_table(frame))
        head = "".join(f"<th>{_inline(str(name))}</th>" for name in frame.columns)
        rows = "".join(
            f"<tr>{''.join(_cell(str(cell)) for cell in row)}</tr>\n" for row in frame.to_numpy()
        )
        caption = f"<caption>{_inline(caption)}</caption>" if caption else ""
        self._html.append(
            f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>\n'
            f"<tbody>{rows}</tbody></table></div>"
        )

    def figure(self, path: Path, caption: str, width: str = "100%") -> None:
        """Add a figure (PNG), linked in Markdown, embedded in HTML; narrow ones share a row."""
        alternative = html.escape(caption, quote=True)
        self._figures.append(path)
        self._markdown.append(f"![{caption}]({{figure {len(self._figures) - 1}}})\n\n*{caption}*\n")
        self._html.append(
            f'<figure style="display: inline-block; max-width: {width}">'
            f'<img src="{_embedded(path)}" alt="{alternative}">'
            f"<figcaption>{_inline(caption)}</figcaption></figure>"
        )

    def details(self, summary: str, content: str) -> None:
        """Add long preformatted text, collapsed."""
        escaped = html.escape(content, quote=False)
        block = f"<details><summary>{summary}</summary>\n\n{{}}\n\n</details>"
        self._markdown.append(block.format(f"```\n{content}\n```") + "\n")
        self._html.append(block.format(f"<pre>{escaped}</pre>"))

    def markdown(self, folder: Path) -> str:
        """The document as Markdown for a file in `folder`, to which figures are relative."""
        text = "\n".join(self._markdown)
        for number, path in enumerate(self._figures):
            place = Path(os.path.relpath(path, folder)).as_posix()
            text = text.replace(f"({{figure {number}}})", f"({place})")
        return text

    def html(self) -> str:
        """The document as a single HTML page that includes its figures."""
        return _PAGE.format(title=html.escape(self.title), body="\n".join(self._html))
