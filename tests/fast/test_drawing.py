"""Figures are drawn in fonts that have their characters; what no font has is said once."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import get_data_path
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font, ttfFontProperty

from clusterlora.drawing import fonts_for, write_png


@pytest.fixture
def only_matplotlibs_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Read from the package: the list in the user's cache may be of another installation.
    files = sorted(Path(get_data_path(), "fonts", "ttf").glob("DejaVuSans*.ttf"))
    monkeypatch.setattr(fontManager, "ttflist", [ttfFontProperty(get_font(str(file))) for file in files])


def install(folder: Path, family: str, characters: str) -> None:
    """Make a font of squares for these characters known to matplotlib."""
    names = {ord(character): f"u{ord(character):X}" for character in characters}
    pen: Any = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys((".notdef", *names.values()), square))
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names.values()), (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    file = folder / f"{family}.ttf"
    builder.save(file)
    fontManager.addfont(file)


def titled(title: str) -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50)
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure


@pytest.mark.usefixtures("only_matplotlibs_fonts")
def test_an_installed_font_draws_what_the_default_font_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(tmp_path, "Squares", "中文")
    assert fonts_for(["中"]) == ("Squares",)
    figures: list[Figure] = []
    write_png(lambda: figures.append(titled("people 中文")) or figures[-1], tmp_path / "picture.png")
    assert [figure.texts[0].get_fontfamily()[-1] for figure in figures] == ["sans-serif", "Squares"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert caplog.text == ""


@pytest.mark.usefixtures("only_matplotlibs_fonts")
def test_characters_that_no_font_has_are_said_once_with_the_font_to_install(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        figures: list[Figure] = []
        write_png(lambda: figures.append(titled("中文 and 中文")) or figures[-1], tmp_path / "picture.png")
    on_picture = "2 characters are drawn as boxes, no installed font has them (U+4E2D U+6587); on Debian: apt-get install fonts-noto-cjk"
    assert figures[-1].get_supxlabel() == on_picture
    assert [record.getMessage() for record in caplog.records] == [
        "picture.png: 2 characters are drawn as boxes, no installed font has them (中 文); on Debian: apt-get install fonts-noto-cjk"
    ]


def test_right_to_left_text_marks_and_variation_selectors_need_no_other_font(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_png(lambda: titled("שלום مرحبا e\u0301 ☺\ufe0f"), tmp_path / "picture.png")
    assert caplog.text == ""


@pytest.mark.usefixtures("only_matplotlibs_fonts")
def test_a_family_without_a_face_of_normal_weight_is_looked_at_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    light = replace(fontManager.ttflist[0], name="Only Light", weight=200)
    fontManager.ttflist.append(light)
    with caplog.at_level(logging.WARNING):
        write_png(lambda: titled("people 中文"), tmp_path / "picture.png")
    assert [record.name for record in caplog.records] == ["clusterlora.drawing"]
