"""Accessibility of the report: contrast, headings, names of figures and controls."""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import clusterlora.report
from clusterlora.report.data import ReportData
from clusterlora.report.page import page

CSS = (Path(clusterlora.report.__file__).parent / "page.css").read_text()
READABLE = 4.5
"""Least contrast of text with its ground. Source: WCAG 2.2, 1.4.3 (AA)."""


class Outline(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements(report_data: ReportData) -> list[tuple[str, dict[str, str | None]]]:
    return Outline(page(report_data)).elements


def colours(selector: str) -> dict[str, str]:
    """Return the variables of a theme."""
    block = CSS.partition(selector + " {")[2].partition("}")[0]
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb. Source: WCAG 2.2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [":root", ':root[data-theme="dark"]'])
@pytest.mark.parametrize("ink", ["ink", "muted", "good", "bad"])
@pytest.mark.parametrize("ground", ["page", "surface"])
def test_text_has_enough_contrast_in_both_themes(theme: str, ink: str, ground: str) -> None:
    bright, dark = sorted((luminance(colours(theme)[ink]), luminance(colours(theme)[ground])), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= READABLE


def test_headings_are_an_outline_without_gaps(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_figure_has_an_accessible_name_and_every_link_a_target(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    assert next(attributes for tag, attributes in elements if tag == "html")["lang"] == "en"
    for tag, attributes in elements:
        if tag == "img":
            assert attributes.get("alt"), attributes
        if attributes.get("role") == "figure" or tag == "nav":
            assert attributes.get("aria-label"), attributes
    ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
    links = [str(attributes.get("href")) for tag, attributes in elements if tag == "a"]
    targets = {link[1:] for link in links if link.startswith("#")}
    assert targets <= ids
