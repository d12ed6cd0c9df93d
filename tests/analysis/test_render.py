"""A document as text and Markdown."""

import base64
import hashlib
import re

import pytest

from mnist_exp.analysis import render, report

EVIL = "\x1b]0;owned\x07\x9b31m\r\u202e\nforged"


@pytest.mark.parametrize("text_of", [render.as_text, render.as_markdown])
def test_control_characters_are_escaped_in_every_block(text_of):
    document = [report.Heading(EVIL), report.Text(EVIL), report.Grid([EVIL], [[EVIL]], 0)]
    text = text_of(document)
    assert all(line.isprintable() for line in text.splitlines())
    assert "forged" not in text.splitlines()  # a name cannot start a line of its own


def test_a_page_escapes_control_characters_and_markup():
    page = render.as_html([report.Text(EVIL), report.Grid([EVIL], [["<b>"]], 0), report.Picture("<svg/>", EVIL)], EVIL)
    assert all(line.isprintable() for line in page.splitlines())
    assert "<svg/>" in page
    assert "&lt;b&gt;" in page


def test_the_first_picture_of_a_table_stands_beside_the_texts_that_begin_its_section():
    grid = report.Grid(["row", "score"], [["a", "1"]], 1)
    pictures = [report.Picture(f"<svg id='{number}'/>", f"caption {number}") for number in range(3)]
    titles = [report.Heading("data", 2), report.Heading("Pictures")]
    document = [report.Text("all"), titles[0], report.Text("verdict"), grid, titles[1], *pictures, report.Text("end")]
    parts = list(render._parts(document))
    lead, rest = render._Lead([report.Text("verdict")], pictures[0]), render._Pictures(pictures[1:])
    assert parts == [report.Text("all"), titles[0], lead, grid, titles[1], rest, report.Text("end")]
    assert list(render._parts(document[:6])) == [report.Text("all"), titles[0], lead, grid]  # no title without pictures
    page = render.as_html(document, "t")
    assert page.index("verdict") < page.index("id='0'") < page.index("<table>") < page.index("id='1'")


def test_the_policy_of_a_page_allows_its_own_script_alone():
    page = render.as_html([report.Text("<script>alert(1)</script>")], "t")
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in page
