"""`data validate`: the numbers of a data set, and why it cannot be trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from clusterlora.data.load import load
from clusterlora.data.summary import DataSummary, Distribution
from clusterlora.data.validate import examine, summarise
from clusterlora.settings import DataSettings, SyntheticSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn

SHARED = Path(__file__).parents[3] / "shared" / "data"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data is not at {SHARED}")


def test_a_summary_counts_personas_dialogues_examples_and_splits() -> None:
    settings = DataSettings(train=5, val=3, test=2, synthetic=SyntheticSettings(cluster_sizes=(2, 3), dialogues=10))
    dataset = load(settings)
    summary = summarise(dataset)
    assert (summary.personas, summary.described, summary.dialogues) == (5, 5, 50)
    assert (summary.train, summary.val, summary.test) == (25, 15, 10)
    assert summary.examples == sum(t.role == "assistant" for p in dataset.personas for d in p.dialogues for t in d.turns)
    assert (summary.duplicates, summary.leaks, summary.refusal) == (0, 0, None)
    assert summary.dialogues_per_persona.median == 10
    assert 0 < summary.response_characters.p5 <= summary.response_characters.median <= summary.response_characters.maximum
    assert examine(settings) == summary


def test_duplicates_and_leaks_across_personas_are_counted() -> None:
    def dialogue(name: str, text: str, split: Split) -> Dialogue:
        return Dialogue(name, (Turn("user", text), Turn("assistant", "yes")), split=split)

    ann = Persona("ann", None, (dialogue("a", "lights on", "train"), dialogue("b", "Lights on!", "test"), dialogue("c", "music", "train")))
    bob = Persona("bob", None, (dialogue("a", "MUSIC", "test"), dialogue("b", "heating", "train")))
    summary = summarise(Dataset((ann, bob)))
    assert summary.duplicates == 1
    assert summary.leaks == 2


def test_data_that_cannot_be_trained_on_is_counted_and_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"persona_id": name, "prompt": "hello", "response": "hi"} for name in ("ann", "bob")]
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = examine(DataSettings(source="table", path=str(path)))
    assert (summary.personas, summary.dialogues, summary.examples, summary.train) == (2, 2, 2, 0)
    assert summary.refusal is not None
    assert "few.jsonl:2: persona 'bob': has 1 dialogue; give it at least 3 different dialogues" in summary.refusal


@needs_shared
def test_the_edgewise_sample_is_read_and_refused_for_training() -> None:
    summary = examine(DataSettings(source="table", path=str(SHARED / "edgewise_sample.jsonl")))
    assert (summary.personas, summary.dialogues, summary.examples) == (200, 200, 400)
    assert summary.refusal is not None
    assert summary.refusal.startswith("200 problems in the data:")


def test_lengths_that_span_decades_are_counted_and_drawn_on_a_logarithmic_axis() -> None:
    from clusterlora.report.data_picture import compose_data

    def summary(*lengths: int) -> DataSummary:
        dialogues = tuple(Dialogue(f"d{n}", (Turn("user", "x"), Turn("assistant", "y" * n))) for n in lengths)
        return summarise(Dataset((Persona("ann", None, dialogues),)))

    wide, narrow = summary(2, 3, 5, 8, 40, 900), summary(20, 30, 50)
    assert wide.response_characters.logarithmic
    assert not narrow.response_characters.logarithmic
    assert [Distribution.of((7, most)).logarithmic for most in (699, 700)] == [False, True]
    for counts, n in ((wide.response_characters, 6), (narrow.response_characters, 3)):
        assert sum(counts.bins) == n
        assert counts.edges[0] == counts.minimum
        assert counts.edges[-1] == counts.maximum + 1
        assert len(counts.edges) == len(counts.bins) + 1
    # The four short ones do not share a bin with each other.
    assert wide.response_characters.bins[:1] == (1,)
    assert max(wide.response_characters.bins) == 1
    scales = [axes.get_xscale() for axes in compose_data(wide, "people").axes]
    assert scales[:3] == ["linear", "log", "log"]
