"""An empirical null: dialogues are exchanged whole and at random, and what such studies claim is counted."""

import importlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.comparison.null_rate import null_rate
from clusterlora.comparison.sentence import claims_personalisation
from clusterlora.data.load import load
from clusterlora.data.permutation import Remainder, check_exchange, permuted, remainder
from clusterlora.data.source import SourceData
from clusterlora.errors import BadData, BadSettings
from clusterlora.metadata import ComparisonSummary, MethodScore
from clusterlora.planning.null_studies import null_studies
from clusterlora.planning.study_state import StudyState
from clusterlora.ports.stores import Stores
from clusterlora.requests import PermutationRequest
from clusterlora.results.null_rate import rate_of, write_null_rate
from clusterlora.settings import DataSettings, GateSettings, Study
from clusterlora.stages.compare import _summary as summary_of
from clusterlora.stages.compare import compare_study
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn
from tests.fixtures.comparison import compared, evaluation
from tests.fixtures.stages import LOG, run

study_cli: Any = importlib.import_module("clusterlora.cli.study")
"""The module; the package gives its name to the command inside."""


def person(name: str, texts: list[str], *, splits: list[Split | None] | None = None) -> Persona:
    """Return a person whose dialogues say these texts; ids are the same for everybody."""
    dialogues = (
        Dialogue(f"d{i}", (Turn("user", f"say {text}"), Turn("assistant", f"answer {text} of {name}")), split=splits[i] if splits else None)
        for i, text in enumerate(texts)
    )
    return Persona(name, f"the text of {name}", tuple(dialogues))


def words_of(data: SourceData) -> Counter[str]:
    return Counter(d.turns[1].text for p in data.dataset.personas for d in p.dialogues)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 99))
def test_nothing_is_lost_and_everybody_has_as_many_dialogues_as_before(sizes: list[int], seed: int) -> None:
    people = tuple(person(f"p{n}", [f"{n}{i}quite {n * 7 + i} different" for i in range(size)]) for n, size in enumerate(sizes))
    before = SourceData(Dataset(people))
    after = permuted(before, seed)
    assert words_of(after) == words_of(before)
    assert [len(p.dialogues) for p in after.dataset.personas] == sizes
    assert [(p.id, p.description) for p in after.dataset.personas] == [(p.id, p.description) for p in people]
    assert all(len({d.id for d in p.dialogues}) == len(p.dialogues) for p in after.dataset.personas)
    assert after == permuted(before, seed)


def test_labels_say_nothing_any_more_and_another_seed_deals_otherwise() -> None:
    people = tuple(person(f"p{n}", [f"number {n * 100 + i} {'xyzw'[i % 4] * (i + 1)}" for i in range(30)]) for n in range(10))
    data = SourceData(Dataset(people))
    one, other = permuted(data, 1), permuted(data, 2)
    kept = [d for p in one.dataset.personas for d in p.dialogues if d.turns[1].text.endswith(f"of {p.id}")]
    assert 10 <= len(kept) <= 55, "a tenth of 300 by chance"
    assert one.dataset != other.dataset


def test_conversations_duplicates_and_splits_stay_whole() -> None:
    ana = person("ana", ["turn it up", "turn it up", "one thing", "another matter"])
    ben = person("ben", ["the first half", "a second part", "this thing again", "something else entirely"])
    conversations = {("ben", "d0"): "chat", ("ben", "d1"): "chat"}
    for seed in range(20):
        after = permuted(SourceData(Dataset((ana, ben)), conversation_by_dialogue=conversations), seed)
        owner = {d.turns[1].text.split(" of ")[0] + d.id: p.id for p in after.dataset.personas for d in p.dialogues}
        assert owner["answer turn it upana/d0"] == owner["answer turn it upana/d1"], "they would be on both sides of a split"
        assert owner["answer the first halfben/d0"] == owner["answer a second partben/d1"]
        together = {after.conversation_by_dialogue[owner["answer the first halfben/d0"], f"ben/{name}"] for name in ("d0", "d1")}
        assert together == {"ben/chat"}

    splits: list[Split | None] = ["train", "train", "val", "test"]
    given_splits = tuple(person(f"p{n}", [f"{n}{i} and {n * i}" for i in range(4)], splits=splits) for n in range(6))
    after = permuted(SourceData(Dataset(given_splits)), 3)
    assert all(sorted(map(str, (d.split for d in p.dialogues))) == ["test", "train", "train", "val"] for p in after.dataset.personas)


def test_people_whose_conversations_have_sizes_of_their_own_change_places_too() -> None:
    people = tuple(person(f"p{n}", [f"{n}{i} and {n * 50 + i} is {chr(97 + i)}" for i in range(6 * (n + 2))]) for n in range(5))
    talks = {(p.id, d.id): f"talk {i // (n + 2)}" for n, p in enumerate(people) for i, d in enumerate(p.dialogues)}
    data = SourceData(Dataset(people), conversation_by_dialogue=talks)
    n_home = 0
    for seed in range(10):
        after = permuted(data, seed)
        assert words_of(after) == words_of(data)
        assert [len(p.dialogues) for p in after.dataset.personas] == [len(p.dialogues) for p in people]
        assert len(set(after.conversation_by_dialogue.values())) == len({(p, talk) for (p, _), talk in talks.items()})
        holders = {(p, talk) for (p, _), talk in after.conversation_by_dialogue.items()}
        assert len(holders) == 30, "conversations are whole"
        n_home += sum(d.id.startswith(f"{p.id}/") for p in after.dataset.personas for d in p.dialogues)
    assert n_home < 0.5 * 10 * data.dataset.n_dialogues, "all of them, if only equal sizes changed places"


def split_people(*origins: str, dialogues: str = "ttttvs") -> Dataset:
    """Return two people whose dialogues are by one of them, a letter each; the ids of people and dialogues hold slashes."""
    splits: dict[str, Split] = {"t": "train", "v": "val", "s": "test"}
    return Dataset(
        tuple(
            Persona(
                f"team/{name}",
                None,
                tuple(
                    Dialogue(f"team%2F{origin}/d/{i}", (Turn("user", "a"), Turn("assistant", "b")), split=splits[split])
                    for i, (origin, split) in enumerate(zip(own, dialogues, strict=True))
                ),
            )
            for name, own in zip("ab", origins, strict=True)
        )
    )


@pytest.mark.parametrize(
    ("origins", "share", "by_chance"),
    [
        (("aaaaaa", "bbbbbb"), 1.0, 0.5),
        (("bbbbbb", "aaaaaa"), 1.0, 0.5),
        (("aabbaa", "abbbab"), (0.5 + 0.75) / 2, (3 / 8 + 5 / 8) / 2),
        (("bbbbba", "aaaaab"), 0.0, 0.5),
    ],
)
def test_what_an_exchange_leaves_is_how_much_is_trained_on_of_who_said_what_is_tested(
    origins: tuple[str, ...], share: float, by_chance: float
) -> None:
    left = remainder(split_people(*origins))
    assert left is not None
    assert (left.share, left.by_chance) == pytest.approx((share, by_chance))


def test_people_whose_ids_begin_with_those_of_others_are_told_apart() -> None:
    def exchanged(*names: str) -> Dataset:
        splits: list[Split | None] = ["train", "train", "train", "train", "train", "val", "test", "test"]
        people = (person(name, [f"{n}{i}quite {n * 8 + i} different" for i in range(8)], splits=splits) for n, name in enumerate(names))
        return permuted(SourceData(Dataset(tuple(people))), 3).dataset

    nested, plain = exchanged("home", "home/anna", "home/anna/1", "home%2Fanna"), exchanged("a", "b", "c", "d")
    check_exchange(nested, 3)
    assert remainder(nested) == remainder(plain) is not None


def test_an_exchange_that_leaves_much_is_warned_of_and_one_that_changes_only_names_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        check_exchange(split_people("abababab", "babababa", dialogues="ttttttvs"), 3)
        check_exchange(split_people("bbbbba", "aaaaab"), 3)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    caplog.clear()
    check_exchange(split_people("aaabbaa", "bbbaabb", dialogues="ttttvvs"), 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "75% of what is trained on is by the person who said what is tested beside it, where chance leaves 50%" in caplog.text
    for same in (("aaaaaa", "bbbbbb"), ("bbbbbb", "aaaaaa")):
        with pytest.raises(BadData, match=r"data\.permute_seed = 3 changes nothing but names"):
            check_exchange(split_people(*same), 3)


@pytest.mark.parametrize("sizes", [(3, 4), (4, 4)], ids=["of sizes of their own", "of one size"])
def test_people_with_a_conversation_each_have_no_null(tmp_path: Path, sizes: tuple[int, int]) -> None:
    rows = [
        {"persona_id": f"p{n}", "dialogue_id": f"talk{n}", "prompt": f"say {n}{i}", "response": f"a{n}{i} b{n}{i} c{n}{i} d{n}{i}"}
        for n, size in enumerate(sizes)
        for i in range(size)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(source="table", path=str(file), train=1, val=1, test=1)
    assert len(load(settings).personas) == 2
    for seed in range(3):
        with pytest.raises(BadData, match="changes nothing but names"):
            load(replace(settings, permute_seed=seed))


def test_the_rate_says_how_much_is_left_of_who_said_what_and_calls_nothing_personal_only_where_that_is_so() -> None:
    studies = [("a", outcome()), ("b", outcome())]
    well = null_rate(studies, [Remainder(0.1, 0.08), Remainder(0.12, 0.08)])
    assert "in which nothing is personal" in well.sentence
    assert well.markdown().endswith(
        "The labels are least permuted in b: 12% of what is trained on is by the person who said what is tested beside it, where "
        "chance leaves 8%.\n"
    )
    assert "in which something still is personal" in null_rate(studies, [Remainder(0.1, 0.08), Remainder(0.4, 0.08)]).sentence


def test_a_study_loads_its_people_with_their_dialogues_exchanged_before_they_are_split(seven: Study) -> None:
    usual, null = load(seven.data), load(replace(seven.data, permute_seed=1))
    assert null.ids == usual.ids
    answers = [{turn.text for p in data.personas for d in p.dialogues for turn in d.turns} for data in (usual, null)]
    assert len(answers[0] & answers[1]) > 0.5 * len(answers[0])
    moved = [d for p in null.personas for d in p.dialogues if not d.id.startswith(f"{p.id}/")]
    assert len(moved) > 0.5 * null.n_dialogues
    assert all(len(p.of_split("train")) == seven.data.train for p in null.personas)


def test_the_studies_of_a_null_differ_in_name_and_seed_and_ask_nobody() -> None:
    study = Study(name="mine", gate=GateSettings(on_failure="ask"))
    first, second = null_studies(study, 2)
    assert [(s.name, s.data.permute_seed) for s in (first, second)] == [("mine-null-01", 1), ("mine-null-02", 2)]
    assert replace(first, name="mine", data=study.data) == replace(study, gate=replace(study.gate, on_failure="stop"))
    with pytest.raises(BadSettings, match="study name"):
        null_studies(Study(name="m" * 45), 1)


def test_a_claim_is_what_the_sentence_claims() -> None:
    because = compared(evaluation({"unified": 0.80, "cluster": 0.84, "random_cluster": 0.80}, (8, 8), n_items=8, noise=0.01))
    smaller = compared(evaluation({"unified": 0.80, "cluster": 0.84, "random_cluster": 0.84}, (8, 8), n_items=8, noise=0.01))
    nothing = compared(evaluation({"unified": 0.84, "cluster": 0.80, "random_cluster": 0.70}, (8, 8), n_items=8, noise=0.01))
    assert (because.champion, smaller.champion, nothing.champion) == ("cluster", "cluster", "unified")
    assert claims_personalisation(because)
    assert "and because the people of a cluster are alike" in because.sentence
    assert not claims_personalisation(smaller)
    assert "that this is because the people of a cluster are alike is not shown" in smaller.sentence
    assert not claims_personalisation(nothing)


def outcome(*, claims: bool = False, champion: str | None = "unified", refused: bool = True) -> ComparisonSummary:
    return ComparisonSummary(champion, "Something.", (), gate_refused=refused, claims_personalisation=claims)


def test_a_method_that_beats_unified_and_is_no_champion_is_counted_too() -> None:
    base = MethodScore(
        method="unified", mean=0.7, mean_low=0.6, mean_high=0.8, difference=None, ci_low=None, ci_high=None, n_personas=9, n_items=9
    )
    better = replace(base, method="cluster", difference=0.1, ci_low=0.05, ci_high=0.15, outcome="better")
    control = replace(better, method="random_cluster")
    summaries = [ComparisonSummary(None, "Something.", scores) for scores in ((base, better), (base, control), (base,))]
    rate = null_rate([(f"n{i}", summary) for i, summary in enumerate(summaries)])
    assert "1 shows a method to beat unified" in rate.sentence
    assert [record["beats_unified"] for record in rate.records] == [True, False, False]


def test_the_rate_says_which_studies_could_have_claimed_nothing() -> None:
    def summary(champion: str, *others: str) -> ComparisonSummary:
        return summary_of(compared(evaluation({"unified": 0.6, champion: 0.8} | dict.fromkeys(others, 0.6), (8, 8))), ended)

    ended = cast(StudyState, SimpleNamespace(moved=None, verdicts=()))
    without, with_control = summary("cluster"), summary("cluster", "random_cluster")
    elsewhere = summary("hybrid", "cluster", "random_cluster")
    none = null_rate([("n1", without), ("n2", without)]).sentence
    assert none.endswith(" None of them could claim it: no method was compared with the control that tells why it gains.")
    some = null_rate([("n1", with_control), ("n2", elsewhere)]).sentence
    assert "1 claims personalisation" in some
    assert " Of those that beat unified, 1 could not claim it: what does was not compared with a control that tells why" in some
    assert null_rate([("n1", with_control)]).sentence.endswith("no gate refused.")
    small = summary_of(compared(evaluation({"unified": 0.6, "cluster": 0.9, "random_cluster": 0.6}, (4, 4), n_items=1)), ended)
    assert "0 show a method to beat unified" in null_rate([("n1", small)]).sentence, "it has no verdict"


def test_a_study_that_was_compared_without_outcomes_is_compared_again_before_it_counts() -> None:
    """A champion that beats unified there counted as none."""
    old = MethodScore(
        method="cluster", mean=0.8, mean_low=0.7, mean_high=0.9, difference=0.05, ci_low=0.04, ci_high=0.06, n_personas=20, n_items=60
    )
    unified = replace(old, method="unified", difference=None, ci_low=None, ci_high=None)
    with pytest.raises(BadData, match="clusterlora compare --name null-02"):
        null_rate([("null-01", outcome()), ("null-02", ComparisonSummary("cluster", "Something.", (old, unified)))])
    again = ComparisonSummary("cluster", "Something.", (replace(old, outcome="better"), unified))
    assert "1 shows a method to beat unified" in null_rate([("null-01", outcome()), ("null-02", again)]).sentence


def test_the_rate_has_an_interval_and_is_called_too_high_only_when_that_says_so() -> None:
    rate = null_rate([*((f"n{i}", outcome()) for i in range(19)), ("n19", outcome(claims=True, refused=False))])
    assert rate.sentence == (
        "Of 20 studies with permuted labels, in which nothing is personal, 1 claims personalisation (5.0%, 95 % interval 0.9% to 23.6%): "
        "not shown to be more than the 5% that the tests allow. 0 show a method to beat unified, and in 1 no gate refused."
    )
    assert ": more than the 5%" in null_rate([(f"n{i}", outcome(claims=i < 6)) for i in range(20)]).sentence
    assert null_rate([("a", outcome())]).sentence.startswith("Of 1 study with")
    assert rate.markdown().count("\n| n") == 20


@pytest.mark.whole
def test_nulls_of_a_study_run_end_to_end_and_their_rate_is_written_beside_it(seven: Study, stores: Stores) -> None:
    study = replace(seven, methods=("unified", "cluster", "random_cluster"))
    nulls = null_studies(study, 2)
    with pytest.raises(BadData, match="small-null-01 was not compared"):
        rate_of([null.name for null in nulls], stores)
    for null in nulls:
        run(null, stores)
        compare_study(null.name, stores, LOG)
    rate = rate_of([null.name for null in nulls], stores)
    assert [summary.sentence != "" for summary in rate.summaries] == [True, True]
    assert rate.summaries[0] != rate.summaries[1]
    path = write_null_rate(study.name, rate, stores)
    assert path == stores.folder(study.name) / "results" / "null.md"
    assert rate.sentence in path.read_text()
    assert "The labels are least permuted in small-null-0" in path.read_text()


def test_the_command_runs_every_null_prints_the_rate_and_says_which_one_did_not_end(
    monkeypatch: pytest.MonkeyPatch, stores: Stores
) -> None:
    launched: list[str] = []
    completes = True

    def run_studies(studies: tuple[Study, ...], **_: object) -> tuple[SimpleNamespace, ...]:
        launched.extend(study.name for study in studies)
        return tuple(SimpleNamespace(completed=completes) for _ in studies)

    monkeypatch.setattr(study_cli, "deployments", lambda _module: SimpleNamespace(run_studies=run_studies))
    monkeypatch.setattr(study_cli, "services_home", lambda: None)
    monkeypatch.setattr(study_cli, "open_local_stores", lambda: stores)
    monkeypatch.setattr(study_cli, "with_usable_inputs", lambda study: study)
    monkeypatch.setattr("clusterlora.results.null_rate.rate_of", lambda names, _: null_rate([(name, outcome()) for name in names]))
    asked = ["permute", "--preset", "quick", "--times", "3", "--json"]
    ended = CliRunner().invoke(study_cli.study, asked)
    assert ended.exit_code == 0, ended.output
    assert launched == ["quick-null-01", "quick-null-02", "quick-null-03"]
    printed = json.loads(ended.stdout)
    assert (printed["claims"], printed["times"], len(printed["studies"])) == (0, 3, 3)
    note = "no study can claim personalisation, whatever it finds; add --controls"
    assert note not in ended.stderr
    without = [*asked, "--set", 'methods=["unified","cluster"]']
    assert note in CliRunner().invoke(study_cli.study, without).stderr
    assert note not in CliRunner().invoke(study_cli.study, [*without, "--controls"]).stderr
    without = [*asked, "--set", 'methods=["unified","hybrid"]', "--controls"]
    note = "whatever it finds; in methods, add per_persona and swapped_persona or cluster and random_cluster"
    assert note in CliRunner().invoke(study_cli.study, without).stderr
    completes = False
    ended = CliRunner().invoke(study_cli.study, asked)
    assert ended.exit_code == 1
    assert "quick-null-03 did not end; run the same command again" in ended.output


def test_a_request_says_what_is_run_how_often() -> None:
    assert PermutationRequest(study=Study(name="mine"), times=5).run_name == "mine · 5 times"
