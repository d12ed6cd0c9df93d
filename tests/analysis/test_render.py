"""A document as text and Markdown."""

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
