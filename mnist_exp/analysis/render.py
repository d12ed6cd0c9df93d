"""A document as text, as Markdown, or as one HTML file that opens anywhere, without a network."""

import html
import textwrap
from collections.abc import Sequence

from mnist_exp.analysis.report import Block, Grid, Heading, Picture, Text
from mnist_exp.console import printable

WIDTH = 110  # of running text, in letters

STYLE = """
:root { color-scheme: light dark;
  --paper: #fff; --ink: #1b1b1b; --muted: #595959; --grid: #e5e5e5; --blue: #0072b2; --sky: #56b4e9 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e8e8e8; --muted: #a8a8a8; --grid: #363a40; --blue: #5db4ee; --sky: #c3e8ff }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 }
h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--grid) }
p { max-width: 60rem; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--grid); text-align: left }
@media screen {
  div { overflow-x: auto }
  th, td { white-space: nowrap }
}
.n { text-align: right }
figure { margin: 1.5rem 0; display: inline-block; vertical-align: top; max-width: 100% }
figcaption { color: var(--muted); font-size: 13px; max-width: 44rem }
.white { background: #fff; color: #000; max-width: 40rem }
svg { max-width: 100%; height: auto }
svg text { fill: currentColor }
@page { size: A4 landscape; margin: 12mm }
@media print {
  :root { --paper: #fff; --ink: #000; --muted: #595959; --grid: #e5e5e5; --blue: #0072b2; --sky: #56b4e9 }
  table { font-size: 10px }
  th, td { padding: .15rem .4rem }
  figure, tr { break-inside: avoid }
  h2 { break-after: avoid }
}
"""
# Whatever slipped through the escaping could neither run nor load anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def as_text(document: Sequence[Block]) -> str:
    """For a terminal."""
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column >= grid.numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_markdown(document: Sequence[Block]) -> str:
    """For a README or an issue."""
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
    """Text that Markdown shows as it is."""
    kept = html.escape(printable(text), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in kept)


def as_html(document: Sequence[Block], title: str) -> str:
    """One file that needs nothing else: no script, no font, no picture beside it."""
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
    )
    body = "\n".join(_element(block) for block in document)
    return f"{head}\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"


def _element(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        paper = ' class="white"' if block.on_white else ""
        return f"<figure><div{paper}>{block.svg}</div><figcaption>{html.escape(block.caption)}</figcaption></figure>"

    def line(cells: Sequence[str], name: str) -> str:
        kinds = [' class="n"' if column >= block.numbers else "" for column in range(len(cells))]
        return "<tr>" + "".join(f"<{name}{k}>{html.escape(c)}</{name}>" for k, c in zip(kinds, cells, strict=True))

    lines = [line(block.header, "th"), *(line(row, "td") for row in block.rows)]
    return f"<div><table>{''.join(lines)}</table></div>"
