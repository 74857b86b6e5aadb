"""The report in a real browser: rendered, searchable, without errors and without requests."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from browser.chromium import Tab
from clusterlora.report.data import ReportData
from clusterlora.report.page import page
from tests.fixtures.report import HOSTILE


@pytest.fixture
def opened(tab: Tab, report_data: ReportData, tmp_path: Path) -> Tab:
    file = tmp_path / "report.html"
    file.write_text(page(report_data), encoding="utf-8")
    tab.open(file.as_uri(), until="document.documentElement.dataset.ready === 'yes'")
    return tab


def test_every_figure_is_rendered(opened: Tab) -> None:
    expected = {
        "means .bars .point path": 4,
        "means .errorbar": 4,
        "spread .boxlayer .trace path.box": 4,
        "spread .boxlayer path.point": 48,
        "against .scatterlayer path.point": 12,
        "clusters .scatterlayer path.point": 12,
        "curves .scatterlayer path.js-line": 2,
        "costs .scatterlayer path.point": 4,
    }
    assert {marks: opened.value(f"document.querySelectorAll('#figure-{marks}').length") for marks in expected} == expected


def test_the_page_fetches_nothing_logs_no_error_and_runs_no_script_of_a_persona(opened: Tab) -> None:
    assert [url.partition(":")[0] for url in opened.requests if not url.startswith(("data:", "blob:"))] == ["file"]
    assert opened.errors == []
    assert opened.value("document.title") == "trial · clusterlora"
    assert opened.value("document.querySelectorAll('img').length") == 0


def test_the_search_box_filters_the_answers(opened: Tab, report_data: ReportData) -> None:
    def search(words: str) -> int:
        opened.value(f"search.value = {json.dumps(words)}; search.dispatchEvent(new Event('input'))")
        return int(opened.value("document.getElementById('found').textContent").split()[0])

    assert search("") == 36
    assert opened.value("document.querySelectorAll('.example').length") == 12
    opened.value("document.getElementById('more').click()")
    assert opened.value("document.querySelectorAll('.example').length") == 24
    assert search("persona_007 ROOM") == 3
    assert opened.value("[...document.querySelectorAll('.example h3')].every(h => h.textContent.startsWith('persona_007'))")
    assert search("nobody says this") == 0
    assert search("onerror") == 36
    search("")
    opened.value("persona.value = '0'; persona.dispatchEvent(new Event('change'))")
    assert opened.value("document.querySelectorAll('.example').length") == 3
    assert opened.value("document.querySelector('.example .answer:last-child .said').textContent") == report_data.examples[0].persona_id


def test_a_heading_sorts_the_methods_by_the_keyboard(opened: Tab) -> None:
    first = "document.querySelector('.sortable tbody tr td').textContent"
    assert opened.value(first) == "cluster ★"
    opened.value("document.querySelectorAll('.sortable th button')[1].focus()")
    for first_method, order in (("cluster ★", "descending"), ("baseline", "ascending")):
        for kind in ("keyDown", "keyUp"):
            opened.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
        assert opened.value("document.activeElement.parentElement.getAttribute('aria-sort')") == order
        assert opened.value(first) == first_method


def test_another_method_is_drawn_against_the_reference_when_it_is_chosen(opened: Tab) -> None:
    shown = "document.querySelector('#figure-against .ytitle').textContent"
    assert opened.value(shown).startswith("cluster")
    opened.value("s = document.querySelector('select[data-figure=against]'); s.value = 1; s.dispatchEvent(new Event('change'))")
    opened.wait_until(f"{shown}.startsWith('per_persona')")
    assert opened.value("document.querySelectorAll('#figure-against .scatterlayer path.point').length") == 12


def test_characters_that_no_font_has_are_said_with_the_fonts_to_install(tab: Tab, report_data: ReportData, tmp_path: Path) -> None:
    def note(words: str) -> str | None:
        """Return the note of a page whose first reference has these words."""
        first, *others = report_data.examples
        file = tmp_path / "report.html"
        file.write_text(page(replace(report_data, examples=(replace(first, reference=words), *others))), encoding="utf-8")
        tab.open(file.as_uri(), until="document.documentElement.dataset.ready === 'yes'")
        return tab.value("document.getElementById('fonts')?.textContent")

    assert note("Größe, שלום, привет") is None
    # Of the third supplementary plane: no common font has it.
    said = note("\N{CJK UNIFIED IDEOGRAPH-30000}\N{CJK UNIFIED IDEOGRAPH-30000}")
    assert said is not None
    assert said.startswith(
        "1 character of this page is shown as a box, because no font on this computer has it (\N{CJK UNIFIED IDEOGRAPH-30000})"
    )
    assert "fonts-noto-cjk" in said
    assert tab.errors == []


def test_right_to_left_answers_begin_on_the_right(tab: Tab, report_data: ReportData, tmp_path: Path) -> None:
    first, *others = report_data.examples
    file = tmp_path / "report.html"
    file.write_text(page(replace(report_data, examples=(replace(first, reference="שלום, עולם!"), *others))), encoding="utf-8")
    tab.open(file.as_uri(), until="document.documentElement.dataset.ready === 'yes'")
    said = tab.value(
        "(() => { const p = document.querySelector('.example .reference-text .said'); const range = document.createRange();"
        "range.selectNodeContents(p); const [text, box] = [range.getBoundingClientRect(), p.getBoundingClientRect()];"
        "return [text.left - box.left, box.right - text.right] })()"
    )
    assert said[1] < 1 < said[0]


_BROKEN_WORDS = """(() => {
    const broken = [];
    for (const heading of document.querySelectorAll("th, td, h1, h2, nav a, dt, button, .badge, .tile .name, .tile .value")) {
        const walker = document.createTreeWalker(heading, NodeFilter.SHOW_TEXT);
        for (let node = walker.nextNode(); node; node = walker.nextNode()) {
            for (const word of node.data.matchAll(/[^\\s-]+/g)) {
                const range = document.createRange();
                range.setStart(node, word.index);
                range.setEnd(node, word.index + word[0].length);
                if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(word[0]);
            }
        }
    }
    return broken;
})()"""


@pytest.mark.parametrize("width", [390, 768, 1280, 1300, 1920])
def test_no_heading_and_no_cell_breaks_inside_a_word_and_wide_tables_scroll_in_their_box(opened: Tab, width: int) -> None:
    opened.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    opened.wait_until(f"innerWidth === {width}")
    opened.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert opened.value("document.querySelectorAll('th').length") > 40
    # A list of persona ids is folded into a cell; an id may be longer than any cell.
    assert [word for word in opened.value(_BROKEN_WORDS) if word not in HOSTILE] == []
    opened.wait_until("document.documentElement.scrollWidth <= innerWidth", seconds=20)
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert opened.value(f"{boxes}.every(box => box.scrollWidth <= box.clientWidth || getComputedStyle(box).overflowX === 'auto')")


_TEXT_UNDER = """(element => {
    const box = element.getBoundingClientRect();
    const texts = [...document.querySelectorAll("main text, main h2, main p, main td, main th")];
    return texts.filter(one => !element.contains(one)).filter(one => {
        const other = one.getBoundingClientRect();
        const beside = other.left >= box.right - 1 || other.right <= box.left + 1;
        return other.width && !beside && other.top < box.bottom - 1 && other.bottom > box.top + 1;
    }).map(one => one.textContent.slice(0, 40));
})"""


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_chart_tools_cover_no_text_and_headings_are_reached_below_the_menu(opened: Tab, width: int) -> None:
    opened.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    opened.wait_until(f"innerWidth === {width}")
    opened.value("document.getElementById('theme').click()")  # draws everything anew
    opened.wait_until("document.documentElement.scrollWidth <= innerWidth", seconds=20)
    tools = opened.value(f"[...document.querySelectorAll('.modebar')].map(bar => {_TEXT_UNDER}(bar))")
    assert tools == ([] if width < 640 else [[]] * 7), "on a phone there are no tools"
    below = (
        "[...document.querySelectorAll('section')].every(one => { one.scrollIntoView({behavior: 'instant'});"
        "return one.querySelector('h2').getBoundingClientRect().top >= document.querySelector('nav').getBoundingClientRect().bottom })"
    )
    assert opened.value(below)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(opened: Tab, width: int, theme: str) -> None:
    axe = Path(str(pytest.importorskip("axe_core_python").__file__)).with_name("axe.min.js").read_text(encoding="utf-8")
    opened.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    opened.value(f"document.documentElement.dataset.theme === '{theme}' || document.getElementById('theme').click()")
    opened.value(f"{axe}; 1")
    opened.value("axe.run(document).then(result => { window.found = result.violations }); 1")
    opened.wait_until("window.found !== undefined")
    serious = "window.found.filter(one => ['serious', 'critical'].includes(one.impact))"
    assert opened.value(f"{serious}.map(one => [one.id, one.nodes[0].html.slice(0, 200)])") == []


def test_on_paper_there_is_no_menu_the_page_is_light_and_tables_do_not_scroll(opened: Tab) -> None:
    opened.value("document.getElementById('theme').textContent === 'Light' || document.getElementById('theme').click()")
    opened.call("Emulation.setEmulatedMedia", media="print")
    opened.value("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert opened.value("[...document.querySelectorAll('.scroll')].every(box => getComputedStyle(box).overflowX === 'visible')")
    assert opened.value("document.documentElement.dataset.theme") == "light"
    opened.value("window.dispatchEvent(new Event('afterprint'))")
    assert opened.value("document.documentElement.dataset.theme") == "dark"
    assert len(base64.b64decode(opened.call("Page.printToPDF", printBackground=True)["data"])) > 10_000
    opened.call("Emulation.setEmulatedMedia", media="")


def test_the_theme_reaches_page_and_figures(opened: Tab) -> None:
    inks = "[getComputedStyle(document.body).color, document.querySelector('#figure-means .xtick text').style.fill].join()"
    before = opened.value(inks).split("),")
    opened.value("document.getElementById('theme').click()")
    opened.wait_until(f"{inks} !== {json.dumps('),'.join(before))}")
    after = opened.value(inks).split("),")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert opened.errors == []
