"""A document as text, as Markdown, or as one HTML file that needs no network."""

import html
import re
import textwrap
from collections.abc import Sequence

import jinja2

from mnist_exp.analysis.report import Block, Grid, Heading, Text
from mnist_exp.console import printable
from mnist_exp.figures.style import DARK, LIGHT

WIDTH = 110  # of a paragraph, in characters


def as_text(document: Sequence[Block]) -> str:
    """The document as plain text, without its pictures."""
    lines: list[str] = []
    for block in document:
        if isinstance(block, Heading):
            text = printable(block.text)
            lines += ["", text, "=" * len(text)]
        elif isinstance(block, Text):
            lines += textwrap.wrap(printable(block.text), WIDTH, subsequent_indent="  ", break_long_words=False)
        elif isinstance(block, Grid):
            lines += ["", *_aligned(block), ""]
    return "\n".join(lines).strip("\n") + "\n"


def _aligned(grid: Grid) -> list[str]:
    rows = [[printable(cell) for cell in row] for row in (grid.header, *grid.rows)]
    sides = ["<" if column < grid.numbers else ">" for column in range(len(grid.header))]
    forms = [f"{side}{max(map(len, cells))}" for side, cells in zip(sides, zip(*rows, strict=True), strict=True)]
    return ["  ".join(map(format, row, forms)).rstrip() for row in rows]


def as_markdown(document: Sequence[Block]) -> str:
    """The document as Markdown, without its pictures."""
    lines: list[str] = []
    for block in document:
        if isinstance(block, Heading):
            lines += [f"## {_escape(block.text)}", ""]
        elif isinstance(block, Text):
            lines += [_escape(block.text), ""]
        elif isinstance(block, Grid):
            marks = ["--:" if column >= block.numbers else "---" for column in range(len(block.header))]
            rows = [[_escape(cell) for cell in row] for row in (block.header, *block.rows)]
            lines += ["| " + " | ".join(cells) + " |" for cells in (rows[0], marks, *rows[1:])] + [""]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """The text, escaped so that Markdown shows it unchanged."""
    return re.sub(r"[\\`*_\[\]|#]", r"\\\g<0>", html.escape(printable(text), quote=False))


def as_html(document: Sequence[Block], title: str) -> str:
    """The document as one HTML file without scripts and references to other files."""
    loader = jinja2.PackageLoader("mnist_exp.analysis", "")
    # Escapes control characters of texts; markup of ours, such as SVG, is no plain `str`.
    environment = jinja2.Environment(
        loader=loader, autoescape=True, finalize=lambda value: printable(value) if type(value) is str else value
    )
    template = environment.get_template("report.html.j2")
    blocks = [(type(block).__name__, block) for block in document]
    return template.render(title=title, blocks=blocks, light=LIGHT, dark=DARK) + "\n"
