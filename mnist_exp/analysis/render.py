"""A document as text, as Markdown, or as one HTML file that needs no network."""

import base64
import hashlib
import html
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mnist_exp.analysis.report import Block, Grid, Heading, Picture, Text
from mnist_exp.console import printable
from mnist_exp.figures.style import DARK, LIGHT

WIDTH = 110  # of a paragraph, in characters


def as_text(document: Sequence[Block], width: int | None = None) -> str:
    """The document as plain text, without its pictures.

    Args:
        document: the blocks.
        width: columns of the terminal. Tables then lack the last columns for which there is no room, and long names
            lack their middle. None: tables are complete.
    """
    dropped: list[str] = []
    lines: list[str] = []
    for block in document:
        if isinstance(block, Heading):
            text = printable(block.text)
            lines += ["", text, "=" * len(text)]
        elif isinstance(block, Text):
            lines += textwrap.wrap(
                printable(block.text),
                min(width or WIDTH, WIDTH),
                break_long_words=False,
                break_on_hyphens=False,
            )
        elif isinstance(block, Grid):
            fitting, left_out = _fitted(block, width) if width else (block, [])
            dropped += left_out
            lines += ["", *_aligned(fitting), ""]
    if dropped:
        names = ", ".join(dict.fromkeys(dropped))
        note = f"{width} columns have no room for: {names}. --format csv and json have all figures."
        lines += ["", *textwrap.wrap(note, width or WIDTH)]
    return "\n".join(lines).strip("\n") + "\n"


def _fitted(grid: Grid, width: int) -> tuple[Grid, list[str]]:
    """The table in a terminal's width, and the headers of the columns that were left out.

    The last columns go first, but not the first four figures. Then the longest names lose their middle.
    """
    rows = [[printable(cell) for cell in row] for row in (grid.header, *grid.rows)]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(sizes) + 2 * (len(sizes) - 1) > width and len(sizes) > grid.numbers + 4:
        sizes.pop()
    kept = len(sizes)
    while sum(sizes) + 2 * (kept - 1) > width and max(sizes[: grid.numbers], default=0) > 8:
        sizes[sizes.index(max(sizes[: grid.numbers]))] -= 1
    for row in rows:
        for place, size in enumerate(sizes[: grid.numbers]):
            if len(row[place]) > size:
                row[place] = f"{row[place][: size // 2]}…{row[place][len(row[place]) - (size - 1) // 2 :]}"
    cut = [row[:kept] for row in rows]
    return Grid(cut[0], cut[1:], grid.numbers), grid.header[kept:]


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


class _Lead(NamedTuple):
    """The verdict of a table beside its first picture."""

    texts: list[Text]
    picture: Picture


class _Pictures(NamedTuple):
    """Pictures that stand side by side where there is room."""

    pictures: list[Picture]


def as_html(document: Sequence[Block], title: str) -> str:
    """The document as one HTML file without references to other files. Its only script sorts tables."""
    import jinja2  # a tenth of a second, which text need not wait for

    loader = jinja2.PackageLoader("mnist_exp.analysis", "")
    # Escapes control characters of texts; markup of ours, such as SVG, is no plain `str`.
    environment = jinja2.Environment(
        loader=loader, autoescape=True, finalize=lambda value: printable(value) if type(value) is str else value
    )
    script = Path(__file__).with_name("sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = [(type(part).__name__.lstrip("_"), part) for part in _parts(document)]
    template = environment.get_template("report.html.j2")
    return template.render(title=title, parts=parts, light=LIGHT, dark=DARK, script=script, digest=digest) + "\n"


def _parts(document: Sequence[Block]) -> Iterator[Block | _Lead | _Pictures]:
    """The blocks, but the texts that begin a table's section beside its first picture, and its other pictures together.

    A section begins with a heading of level 2.
    """
    starts = [place for place, block in enumerate(document) if isinstance(block, Heading) and block.level == 2]
    for start, end in itertools.pairwise([0, *starts, len(document)]):
        section = list(document[start:end])
        first = next((block for block in section if isinstance(block, Picture)), None)
        if first is not None:
            section.remove(first)
            yield section.pop(0)
            texts = list(itertools.takewhile(lambda block: isinstance(block, Text), section))
            yield _Lead([block for block in texts if isinstance(block, Text)], first)
            del section[: len(texts)]
            if section and isinstance(section[-1], Heading):
                section.pop()  # the picture was the only one under it
        for is_picture, blocks in itertools.groupby(section, lambda block: isinstance(block, Picture)):
            if is_picture:
                yield _Pictures([block for block in blocks if isinstance(block, Picture)])
            else:
                yield from blocks
