"""The manual's pages: their fenced blocks, commands and links."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```$', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, its title (the file that it stands for) or an empty text, its lines."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, without their indentation."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, title, re.sub(f"(?m)^{indent}", "", text)) for indent, language, title, text in found]


def shell_commands(page: Path) -> list[str]:
    """Each command of the page's `sh` blocks on one line, without its comment."""
    text = "".join(block.text for block in blocks(page) if block.language == "sh")
    lines = re.sub(r"\\\n *", "", text).splitlines()
    return [command for line in lines if (command := re.sub(r"(^| +)# .*", "", line).strip())]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
