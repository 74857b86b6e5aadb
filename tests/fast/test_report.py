"""The report: everything in a study is on one page, as text, and no text of the data becomes markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from clusterlora.evaluation.metrics import METRICS
from clusterlora.report import figures
from clusterlora.report.cluster_map import compose_map, draw_map
from clusterlora.report.data import ReportData
from clusterlora.report.markup import data_block, html_table, text
from clusterlora.report.page import page
from clusterlora.report.palette import mark
from clusterlora.report.sections import clusters, signal
from clusterlora.results.report import _examples
from clusterlora.values import EvaluationRow

ALL_PANELS = [
    "verdict", "signal", "methods", "means", "spread", "against", "clusters", "gate", "new-persona", "curves", "costs", "answers-panel",
    "about",
]  # fmt: skip


class Reader(HTMLParser):
    """What a browser would make of a page: its elements, its visible words, and the content of its scripts by their id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = (dict(attrs).get("id") or "code") if tag == "script" else "style" if tag == "style" else None

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002  (the parser names it)
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.words.append(data)
        else:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data

    @property
    def panels(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]


@pytest.fixture(scope="module")
def read(report_data: ReportData) -> Reader:
    return Reader(page(report_data))


def test_a_study_with_everything_has_every_panel_in_order(read: Reader) -> None:
    assert read.panels == ALL_PANELS
    assert json.loads(read.scripts["figures"]).keys() == {"means", "spread", "against", "clusters", "new-persona", "curves", "costs"}


def test_panels_without_data_are_left_out(report_data: ReportData) -> None:
    alone = replace(report_data.comparison, reference=None, floor=None)
    bare = Reader(page(ReportData(study="bare", comparison=alone)))
    assert bare.panels == ["verdict", "methods", "means", "spread", "new-persona"]
    assert "assignment.held_out_share=0.2" in " ".join(bare.words), "how to find it out is said instead"


def test_no_text_of_the_data_becomes_an_element_and_all_is_shown_verbatim(read: Reader, report_data: ReportData) -> None:
    assert not [tag for tag, _ in read.elements if tag in ("img", "iframe", "object", "link")]
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    hostile = report_data.examples[0].persona_id
    assert "onerror" in hostile
    assert hostile in "".join(read.words)
    assert json.loads(read.scripts["answers"])["items"][0]["answers"][0]["text"] == hostile


def test_the_page_loads_no_other_file(read: Reader) -> None:
    addresses = [value for _, attributes in read.elements for name, value in attributes.items() if name in ("src", "href")]
    assert addresses
    assert all(address and address.startswith("#") for address in addresses)
    assert "url(" not in read.scripts["style"]
    policy = next(attributes["content"] for tag, attributes in read.elements if tag == "meta" and "http-equiv" in attributes)
    assert policy
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2


def test_the_table_has_the_comparisons_numbers(read: Reader, report_data: ReportData) -> None:
    words = " ".join(read.words)
    for result in report_data.comparison.methods:
        for metric, value in result.means.items():
            assert METRICS[metric].format(value) in words
    assert report_data.comparison.sentence in words


@settings(max_examples=60)
@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_a_data_block_holds_any_value_and_ends_where_it_should(value: object) -> None:
    reader = Reader(f"<p>before</p>{data_block('data', value)}<p>after</p>")
    assert json.loads(reader.scripts["data"]) == value
    assert reader.words == ["before", "after"]


@given(st.text(st.characters(exclude_categories=["C"])), st.text(st.characters(exclude_categories=["C"])))
def test_text_in_a_cell_reads_as_it_was_written(first: str, second: str) -> None:
    reader = Reader(html_table(["a", "b"], [[text(first), text(second)]], numeric=[False, True], caption=first))
    assert [tag for tag, _ in reader.elements].count("td") == 2
    assert second in "".join(reader.words)


def test_the_signal_is_shown_with_its_verdict_and_chance(report_data: ReportData) -> None:
    assert report_data.signal is not None
    shown = " ".join(Reader(signal(report_data.signal)).words)
    assert all(word in shown for word in ("have something to win", "which of 12 people", "31.0%", "8.3%", "0.512"))


def test_what_speaks_against_the_models_stands_beside_the_verdict_as_text(report_data: ReportData) -> None:
    sentences = ("base model tiny gives <b>9.9</b> nats per token", "3 of 80 dialogues cannot be asked of the base model and are left out")
    warned = page(replace(report_data, warnings=sentences))
    verdict_panel = warned[warned.index('<section id="verdict">') : warned.index('<section id="signal">')]
    assert verdict_panel.count('class="warning"') == 2
    assert "Base model tiny gives &lt;b&gt;9.9&lt;/b&gt; nats per token." in verdict_panel
    assert 'class="warning"' not in page(report_data)[: warned.index('<section id="signal">')].split("<main>")[1]


def test_new_personas_are_shown_with_their_sentence(read: Reader) -> None:
    words = " ".join(read.words)
    assert "beats unified by 10 dialogues (+4.12 points [+2.12, +6.12], 50% leave unified)" in words
    assert "is not shown to differ from unified by 3 dialogues" in words
    assert "held_out_share" not in words


def test_unstable_clusters_get_a_warning(report_data: ReportData) -> None:
    clustering = report_data.clustering
    assert clustering is not None
    assert "unstable" in clusters(clustering)
    assert "ari seeds 0.31, below" in clusters(clustering)
    stable = replace(clustering, quality=(("silhouette", 0.1), ("ari_seeds", 0.9)))
    assert "unstable" not in clusters(stable)


def test_the_scatter_has_a_view_for_every_method_but_the_reference_with_every_persona_once(report_data: ReportData) -> None:
    comparison, clustering = report_data.comparison, report_data.clustering
    assert clustering is not None
    figure = figures.against_reference(comparison, clustering.cluster_by_persona())
    assert figure is not None
    assert next(view["name"] for view in figure["views"]) == comparison.champion == "cluster"
    assert {view["name"] for view in figure["views"]} == {"cluster", "per_persona", "baseline"}
    for view in figure["views"]:
        drawn = [y for trace, visible in zip(figure["data"], view["visible"], strict=True) if visible for y in trace["y"]]
        assert sorted(drawn) == pytest.approx(sorted(100 * v for v in comparison.method(view["name"]).by_persona.values()))


def test_a_method_without_cost_is_drawn_left_of_all_others(report_data: ReportData) -> None:
    figure = figures.costs(report_data.comparison, report_data.costs, "EUR")
    free, *paid = figure["data"][0]["x"]
    assert report_data.costs[0].n_bytes == 0
    assert all(free <= position - 1 for position in paid)
    assert figure["views"][0]["layout"]["xaxis"]["ticktext"][0] == "none"


def test_clusters_differ_in_colour_or_shape() -> None:
    assert len({mark(cluster) for cluster in range(56)}) == 56


def test_the_map_shows_every_persona_sizes_and_quality(report_data: ReportData, tmp_path: Path) -> None:
    clustering = report_data.clustering
    assert clustering is not None
    figure = compose_map(clustering, "a $tudy$")
    (axes,) = figure.axes
    assert [len(drawn.get_offsets()) for drawn in axes.collections] == [4, 4, 4]  # pyrefly: ignore[bad-argument-type]
    words = " ".join(found.get_text() for found in figure.findobj(Text))
    assert all(word in words for word in ("a $tudy$", "2 (4)", "silhouette 0.12", "ari seeds 0.31"))
    draw_map(clustering, tmp_path / "figures" / "clusters.png", "a $tudy$")
    assert re.match(rb"\x89PNG", (tmp_path / "figures" / "clusters.png").read_bytes())


def test_the_page_of_200_people_has_answers_of_each_and_at_most_6_mb(report_data: ReportData) -> None:
    methods = [f"method_{number}" for number in range(10)]
    words = "Lights at 20, as you like them in the evening, and the music a little lower than yesterday. " * 2
    rows = [
        EvaluationRow(method, f"persona_{person:03d}", person % 5, f"item {item}", words, words, words, {"embedding_similarity": 0.5})
        for person in range(200)
        for item in range(4)
        for method in methods
    ]
    shown = _examples(rows, methods, "embedding_similarity")
    assert len({example.persona_id for example in shown}) == 200
    # 6 MB less what the figures of 200 people need beyond those of the twelve here.
    assert len(page(replace(report_data, examples=shown)).encode()) < 5.7e6
