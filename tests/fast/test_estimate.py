"""How long a study will take: work counted from its plan, rates from a probe, corrected by what has run."""

import shlex
from dataclasses import replace
from typing import Any

import pytest

from clusterlora.config import PRESETS, parse_setting, resolve
from clusterlora.evaluation.answer import Answerer
from clusterlora.evaluation.metrics import generates
from clusterlora.metadata import MeanTokens, Probe, Rates
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.estimate import (
    ADAPTER_SECONDS,
    RUN_SECONDS,
    Estimate,
    cheaper,
    clustering_seconds,
    corrected,
    ending_seconds,
    estimate,
    expected,
    sentences,
    together_seconds,
)
from clusterlora.progress.timeline import phases
from clusterlora.progress.work import Answering, Work, assumed_clustering, remaining_work
from clusterlora.settings import ClusteringSettings, RuntimeSettings, Study
from clusterlora.settings import prepared as prepared_settings
from clusterlora.stages import probe as probing
from clusterlora.stages.prepare import prepare_study
from clusterlora.study_checks import nll_settings
from clusterlora.values import Attempt, Criterion, TrainedAdapter, Verdict

LENGTHS = MeanTokens(dialogue=100.0, prompt=60.0, response=10.0)
RATES = Rates(train_alone=0.02, train_together=0.0125, n_together=4, read=0.001, write=0.03, embed=0.05, load=2.0)
PROBE = Probe(lengths=LENGTHS, rates=RATES, device="cpu, 8 GiB", seconds=5.0)
METHODS = ("baseline", "unified", "per_persona", "cluster", "selective_routing")


@pytest.fixture
def prepared(seven: Study, stores: Stores) -> StudyState:
    """Return seven people with 3 train, 2 val and 2 test dialogues in clusters of 3 and 4, before they are clustered."""
    prepare_study(replace(seven, methods=METHODS), stores, SilentLog())
    return replace(read_state("small", stores), probe=PROBE, n_workers=2)


def n_answers(state: StudyState, split: str, *people: str) -> int:
    by_id = state.dataset.by_id()
    return sum(turn.role == "assistant" for p in people for dialogue in by_id[p].of_split(split) for turn in dialogue.turns)  # pyrefly: ignore[bad-argument-type]


def judged(state: StudyState, *, training: float, answering: float) -> StudyState:
    """Return the state after a passed gate in which trainings and answers took so many times what the probe said."""
    work = remaining_work(state, LENGTHS)
    ids = state.dataset.ids
    state = replace(state, clustering=assumed_clustering(state))
    specs = work_plan(state).specs
    better = Criterion("above_unified", 0.1, 0.0, True, 0.05, 0.15, "better")
    passed = Verdict("own", "cluster-00", (better,), 3, work.gate_answers.n_answers // 2)
    adapters = tuple(
        TrainedAdapter(work_plan(state).keys[name], name, specs[name], 1, 1, 1.0, 1.0, 0.5, 1) for name in ("unified", "cluster-00")
    )
    seconds = [
        ("train", "unified", RATES.load + ADAPTER_SECONDS + training * 100 * 3 * 7 * RATES.train_alone),
        ("train", "cluster-00", RATES.load + ADAPTER_SECONDS + training * 100 * 3 * 3 * RATES.train_alone),
        ("evaluate gate", "own", answering * (RATES.load + answer_seconds(work.gate_answers.n_answers, work.gate_answers.n_references))),
        ("evaluate baseline", "1/1", answering * (RATES.load + answer_seconds(n_answers(state, "test", *ids)))),
    ]
    return replace(state, seconds=tuple(seconds), verdicts=(passed,), adapters=adapters)


def answer_seconds(n: int, n_references: int | None = None) -> float:
    """Return the seconds of n answers, each to an item of its own unless there are fewer."""
    each = 70 * RATES.read + min(11, 6) * RATES.write + RATES.embed
    return n * each + (n if n_references is None else n_references) * RATES.embed


def test_before_clustering_all_work_is_counted_on_clusters_of_the_asked_sizes(prepared: StudyState) -> None:
    ids, work = prepared.dataset.ids, remaining_work(prepared, LENGTHS)
    # The default algorithm reads no embeddings.
    assert work.texts == 0
    by_responses = replace(prepared.settings, clustering=replace(prepared.settings.clustering, algorithm="responses"))
    assert remaining_work(replace(prepared, settings=by_responses), LENGTHS).texts == n_answers(prepared, "train", *ids)
    # Unified learns from 7 people's 3 dialogues, cluster 0 from 3 people's.
    assert sorted(work.gate) == [100 * 3 * 3, 100 * 3 * 7]
    n_val = n_answers(prepared, "val", *ids[:3])
    assert work.gate_answers == Answering(n_answers=2 * n_val, n_references=n_val)
    assert work.beside_gate.n_answers == n_val + n_answers(prepared, "test", *ids)
    # The other cluster of 4, and every person.
    assert [sorted(wave) for wave in work.fan_out] == [[300.0] * 7 + [1200.0]]
    assert work.evaluation.n_answers == 3 * n_answers(prepared, "test", *ids)
    assert work.evaluation.n_references == n_answers(prepared, "test", *ids)
    assert work.evaluation.n_likelihoods == 4 * n_answers(prepared, "val", *ids)


def test_a_finished_gate_leaves_the_fan_out_and_the_evaluation(prepared: StudyState) -> None:
    before, after = remaining_work(prepared, LENGTHS), remaining_work(judged(prepared, training=1, answering=1), LENGTHS)
    assert (after.texts, after.gate, after.gate_answers.n_answers, after.beside_gate.n_answers) == (0, (), 0, 0)
    assert after.fan_out == before.fan_out
    assert after.evaluation == before.evaluation


def test_the_seconds_of_every_phase_follow_from_work_rates_and_workers(prepared: StudyState) -> None:
    work = remaining_work(prepared, LENGTHS)
    assert work.clustered == n_answers(prepared, "train", *prepared.dataset.ids)
    work = replace(work, texts=40, clustered=21)
    left = expected(work, PROBE, 2, prepared.settings, n_shards=2)
    begin = RUN_SECONDS + RATES.load
    assert left.preparation == pytest.approx(work.texts * RATES.embed + clustering_seconds(21, prepared.settings.clustering))
    trained = begin + ADAPTER_SECONDS
    runs = [trained + 2100 * 0.02, trained + 900 * 0.02, begin + answer_seconds(work.beside_gate.n_answers)]
    assert runs[0] == max(runs)
    judging = answer_seconds(work.gate_answers.n_answers, work.gate_answers.n_references)
    assert left.gate == pytest.approx(max(max(runs), sum(runs) - max(runs)) + begin + judging)
    # Of 0.02 s per token alone and 0.0125 in a pass of four, 0.01 are the pass's and 0.01 each adapter's. One run has the large adapter and
    # two people's, the other five people's, of whom four are trained at a time.
    assert left.fan_out == pytest.approx(
        begin + max(3 * ADAPTER_SECONDS + 0.01 * 1200 + 0.01 * 1800, 5 * ADAPTER_SECONDS + 0.01 * 375 + 0.01 * 1500)
    )
    answers = answer_seconds(work.evaluation.n_answers, work.evaluation.n_references)
    answers += work.evaluation.n_likelihoods * 70 * RATES.read
    ending = ending_seconds(prepared.dataset.n_dialogues, len(METHODS))
    assert left.evaluation == pytest.approx(begin + answers / 2 + ending)
    slow = replace(PROBE, rates=replace(RATES, warm=5.0), ending=2.0)
    later = expected(work, slow, 2, prepared.settings, n_shards=2)
    # Every run that scores warms up: the base model's beside the gate, the gate's, and that of the evaluation.
    assert later.evaluation - left.evaluation == pytest.approx(5.0 + ending)
    beside = max(runs[0], runs[1] + runs[2] + 5.0) - max(runs[0], runs[1] + runs[2])
    assert later.gate - left.gate == pytest.approx(5.0 + beside)
    alone = expected(work, PROBE, 1, prepared.settings, n_shards=2)
    assert alone.fan_out == pytest.approx(2 * begin + 8 * ADAPTER_SECONDS + 0.01 * (1200 + 1800) + 0.01 * (375 + 1500))
    assert alone.total > left.total


def test_the_trials_of_a_tuning_are_kept_as_every_adapter_is(prepared: StudyState) -> None:
    work = replace(remaining_work(prepared, LENGTHS), tuning=(((900.0, 900.0, 900.0), Answering()),))
    left = expected(work, PROBE, 1, prepared.settings, n_shards=2)
    begin, shards = RUN_SECONDS + RATES.load, prepared.n_shards
    assert shards == 2, "one run has two of the trials"
    trained = together_seconds((900.0, 900.0), RATES) + together_seconds((900.0,), RATES)
    assert left.tuning == pytest.approx(2 * begin + trained + 3 * ADAPTER_SECONDS + begin)


def test_a_run_takes_as_long_to_begin_as_those_before_did(stores: Stores, prepared: StudyState) -> None:
    stores.studies.save_metadata("small", PROBE)
    for late in (20.0, 10.0, 15.0):
        probing.record_begin("small", PROBE.seconds + late, PROBE.seconds, stores)
    slow = read_state("small", stores).probe
    assert slow is not None
    assert slow.begin == pytest.approx(15.0)
    work = remaining_work(prepared, LENGTHS)
    usual, late = (expected(work, probe, 2, prepared.settings, n_shards=2) for probe in (PROBE, slow))
    assert late.fan_out - usual.fan_out == pytest.approx(15.0 - RUN_SECONDS)
    assert late.evaluation - usual.evaluation == pytest.approx(15.0 - RUN_SECONDS)


def test_the_end_of_a_study_is_expected_as_long_as_the_ends_of_former_ones_were(seven: Study, stores: Stores) -> None:
    assert probing.ending_ratio(stores) == 1.0
    for number, ratio in enumerate((0.5, 3.0, 2.0)):
        prepare_study(replace(seven, name=f"former-{number}"), stores, SilentLog())
        state = read_state(f"former-{number}", stores)
        foreseen = ending_seconds(state.dataset.n_dialogues, len(state.settings.methods))
        stores.studies.add_seconds(state.name, "compare", "", 0.75 * ratio * foreseen)
        stores.studies.add_seconds(state.name, "register", "", 0.25 * ratio * foreseen)
        assert probing.ending_ratio(stores) == pytest.approx((1.0, 0.5, 1.75)[number]), "one that has not finished tells nothing"
        stores.studies.set_status(state.name, "finished")
    assert probing.ending_ratio(stores) == pytest.approx(2.0)


@pytest.mark.parametrize(("training", "answering"), [(1.0, 1.0), (3.0, 0.5), (0.4, 2.5)])
def test_what_the_gate_took_corrects_what_is_left(prepared: StudyState, training: float, answering: float) -> None:
    after = judged(prepared, training=training, answering=answering)
    left = estimate(after)
    assert left is not None
    foreseen = expected(remaining_work(after, LENGTHS), PROBE, 2, after.settings, n_shards=2)
    assert left.gate == 0
    # The longer run has the large cluster and two people. Loading takes as much longer as answering does.
    fixed = RUN_SECONDS + 3 * ADAPTER_SECONDS
    assert left.fan_out - fixed - answering * RATES.load == pytest.approx(training * (foreseen.fan_out - fixed - RATES.load))
    fixed = RUN_SECONDS + ending_seconds(after.dataset.n_dialogues, len(METHODS))
    assert left.evaluation - fixed == pytest.approx(answering * (foreseen.evaluation - fixed))


@pytest.mark.parametrize("retried", ["unified", "evaluate · gate 1/1 · small · own", "evaluate · baseline 1/1 · small"])
def test_the_seconds_of_what_was_killed_and_resumed_correct_nothing(prepared: StudyState, retried: str) -> None:
    """Its last attempt had the rest of the work: here next to nothing."""
    after, pace = judged(prepared, training=3.0, answering=2.5), (3.0, 2.5)
    part = {"unified": "unified", "evaluate · baseline 1/1 · small": "1/1"}.get(retried, "own")
    rest = tuple((phase, name, 0.001 if name == part else seconds) for phase, name, seconds in after.seconds)
    attempts = tuple(Attempt(retried, number, 2, state) for number, state in ((1, "crashed"), (2, "done")))
    rates = corrected(replace(after, seconds=rest, attempts=attempts), PROBE).rates
    assert (rates.train_alone / RATES.train_alone, rates.read / RATES.read) == pytest.approx(pace)


def test_a_person_is_told_each_phase_further_rungs_and_what_is_cheaper_before_anything_is_trained(prepared: StudyState) -> None:
    long = replace(prepared, settings=replace(prepared.settings, recipe=replace(prepared.settings.recipe, epochs=3)))
    first, rungs, options = sentences(long)
    assert first.startswith("about ")
    assert "on 2 workers (cpu, 8 GiB), by a probe of 5 s: gate" in first
    assert all(phase in first for phase in ("fan-out", "evaluation"))
    assert rungs.startswith("if the gate refuses it tries up to 1 more configuration, ")
    assert options.startswith("cheaper: half the train dialogues (data.train=1) ")
    assert "one epoch (recipe.epochs=1)" in options
    verbose = replace(long, probe=replace(PROBE, rates=replace(RATES, write=10.0)))
    assert f"nothing generated, the loss alone ({nll_settings(long.settings)})" in [what for what, _ in cheaper(verbose)]
    whole = estimate(long)
    assert whole is not None
    assert all(seconds < whole.total for _, seconds in cheaper(long))
    assert sentences(replace(prepared, probe=None)) == ()
    after = sentences(judged(prepared, training=1, answering=1))
    assert len(after) == 1
    assert "by what has run so far: fan-out" in after[0]


def test_workers_that_a_fixed_number_of_shards_leaves_idle_are_told_and_a_shard_for_each_is_cheaper(prepared: StudyState) -> None:
    many = replace(prepared, n_workers=8)
    by_number = {n: replace(many, settings=replace(many.settings, runtime=RuntimeSettings(shards=n))) for n in (None, 2, 8)}
    slow, quick = (estimate(by_number[n]) for n in (2, 8))
    assert slow is not None
    assert quick is not None
    assert quick.fan_out < slow.fan_out
    assert quick.evaluation < slow.evaluation
    assert estimate(replace(by_number[None], decided_shards=8)) == quick
    assert "on 8 workers, of which 2 share fan-out and evaluation (runtime.shards=2) (cpu" in sentences(by_number[2])[0]
    assert dict(cheaper(by_number[2]))["a run for each worker (runtime.shards=8)"] == pytest.approx(quick.total)
    assert "on 8 workers (cpu" in sentences(by_number[8])[0]
    assert not any("runtime.shards" in what for what, _ in cheaper(by_number[8]))


SECOND = {
    "evaluation.metrics": ["embedding_similarity", "rouge_l", "nll", "prompt_tokens"],
    "evaluation.headline": "embedding_similarity",
    "evaluation.second_headline": "rouge_l",
    "evaluation.selection_metric": "rouge_l",
}


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("more", [{}, SECOND])
def test_what_is_told_to_be_cheaper_is_accepted_as_typed_and_generates_nothing(preset: str | None, more: dict[str, Any]) -> None:
    of_preset = {"data.path": "/people.jsonl", "data.source": "table", "model.base": "homelm", **more}
    typed = shlex.split(nll_settings(resolve(preset, None, of_preset)))
    assert typed[::2] == ["--set"] * (len(typed) // 2)
    study = resolve(preset, None, of_preset | dict(map(parse_setting, typed[1::2])))
    assert study.evaluation.headline == "nll"
    assert not generates(study.evaluation.metrics)


def test_a_gate_that_asks_for_a_second_headline_is_told_to_ask_for_none() -> None:
    asks = {"evaluation.second_headline": "rouge_l", "gate.second_headline": True}
    assert "--set gate.second_headline=false" in nll_settings(resolve("mission", None, asks))


def test_every_phase_to_come_has_its_expectation(prepared: StudyState) -> None:
    left = estimate(prepared)
    assert left is not None
    shown = {phase.name: phase.expected for phase in phases(prepared)}
    assert (shown["cluster"], shown["gate"]) == (left.preparation, left.gate)
    after = {phase.name: phase for phase in phases(judged(prepared, training=1, answering=1))}
    assert (after["gate"].state, after["gate"].expected) == ("done", None)
    assert after["train"].expected is not None
    assert after["evaluate"].expected is not None


@pytest.mark.whole
def test_a_probe_measures_the_studys_own_dialogues_and_keeps_nothing_but_the_rates(seven: Study, stores: Stores) -> None:
    prepare_study(replace(seven, methods=METHODS), stores, SilentLog())
    measured = probing.probe("small", stores, SilentLog())
    state = read_state("small", stores)
    assert measured is not None
    assert state.probe == measured
    assert min(measured.rates.train_alone, measured.rates.train_together, measured.rates.read, measured.rates.embed) > 0
    assert measured.rates.train_together <= measured.rates.train_alone
    assert measured.lengths.dialogue > measured.lengths.prompt > measured.lengths.response > 0
    assert (state.adapters, state.attempts, state.verdicts) == ((), (), ())
    assert [phase for phase, _, _ in state.seconds] == ["prepare", "probe"]
    assert estimate(state) is not None


def test_train_texts_that_a_run_embeds_once_are_no_part_of_what_an_answer_takes(prepared: StudyState) -> None:
    def left(metrics: tuple[str, ...], methods: tuple[str, ...]) -> Estimate:
        study = replace(prepared.settings, methods=methods, evaluation=replace(prepared.settings.evaluation, metrics=metrics))
        state = replace(prepared, settings=study)
        return expected(remaining_work(state, LENGTHS), PROBE, 2, study, n_shards=2)

    methods, scored = prepared.settings.methods, prepared.settings.evaluation.metrics
    once = n_answers(prepared, "train", *prepared.dataset.ids) * RATES.embed
    plain, compared = left(scored, methods), left((*scored, "persona_accuracy"), methods)
    # The base model's run beside the gate's trainings ends last, and the gate's own run follows.
    assert compared.gate == pytest.approx(plain.gate + 2 * once)
    assert compared.evaluation == pytest.approx(plain.evaluation + once)
    work = replace(remaining_work(prepared, LENGTHS), texts_searched=7)
    assert expected(work, PROBE, 2, prepared.settings, n_shards=2).evaluation == pytest.approx(plain.evaluation + 7 * RATES.embed)
    searching = replace(prepared, settings=replace(prepared.settings, methods=(*methods, "retrieval")))
    assert remaining_work(searching, LENGTHS).texts_searched == n_answers(prepared, "train", *prepared.dataset.ids)
    assert remaining_work(prepared, LENGTHS).texts_searched == 0


@pytest.mark.whole
def test_a_probe_embeds_nobodys_train_answers(seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = replace(seven.evaluation, metrics=("embedding_similarity", "nll", "persona_accuracy"))
    prepare_study(replace(seven, methods=METHODS, evaluation=compared), stores, SilentLog())
    asked: list[tuple[str, ...]] = []
    answer = Answerer.answer

    def noting(self: Answerer, *arguments: Any, metrics: tuple[str, ...], **others: Any) -> Any:
        asked.append(metrics)
        return answer(self, *arguments, metrics=metrics, **others)

    monkeypatch.setattr(Answerer, "answer", noting)
    assert probing.probe("small", stores, SilentLog()) is not None
    assert asked[-1] == ("embedding_similarity", "nll")


def test_the_signal_and_the_scale_take_their_share_of_the_cores_until_they_are_measured(prepared: StudyState) -> None:
    ids, work = prepared.dataset.ids, remaining_work(prepared, LENGTHS)
    of_signal = 2 * (n_answers(prepared, "train", *ids) + n_answers(prepared, "val", *ids))
    per_person = [n_answers(prepared, "test", p) for p in ids]
    of_scale = sum(min(n, 3) + 3 * min(n, 10) for n in per_person)
    assert work.texts_beside == of_signal + of_scale
    left = expected(work, PROBE, 2, prepared.settings, n_shards=2)
    assert left.beside == 0, "two workers are idle for longer: they begin runs of unequal length and wait for the longest"
    many = replace(work, texts_beside=4000)
    alone, two = (expected(many, PROBE, n, prepared.settings, n_shards=2) for n in (1, 2))
    assert alone.beside == pytest.approx(4000 * RATES.embed), "one worker is never idle"
    ending = ending_seconds(prepared.dataset.n_dialogues, len(METHODS))
    assert two.beside >= 4000 * RATES.embed - (two.gate + two.fan_out + two.evaluation - ending)
    assert 0 < two.beside < 4000 * RATES.embed / 2
    assert two.total == pytest.approx(two.preparation + two.gate + two.fan_out + two.evaluation + two.beside)
    on_gpu = replace(PROBE, device="NVIDIA H200, 139 GiB")
    assert expected(work, on_gpu, 2, prepared.settings, n_shards=2).beside == 0
    measured = replace(prepared, seconds=(("signal", "", 3.0), ("scale", "", 3.0)))
    assert remaining_work(measured, LENGTHS).texts_beside == 0
    by_likelihood = replace(prepared.settings, evaluation=replace(prepared.settings.evaluation, headline="nll"))
    assert remaining_work(replace(prepared, settings=by_likelihood), LENGTHS).texts_beside == of_signal


def test_clustering_takes_the_longer_the_more_it_is_left_to_choose() -> None:
    one, algorithm_open = ClusteringSettings(algorithm="responses_given_prompts", k=5), ClusteringSettings(k=5)
    both_open = ClusteringSettings()
    seconds = [clustering_seconds(4000, settings) for settings in (one, algorithm_open, both_open)]
    assert seconds == sorted(set(seconds))
    assert clustering_seconds(0, both_open) == 0


@pytest.mark.whole
def test_the_probe_of_a_short_study_is_short(seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = probing._seconds_per_token

    def asked(name: str, epochs: int, took: float) -> list[float]:
        """Return the seconds that were enough for each measurement of a study, the first steps of which took so many."""
        enough_each: list[float] = []

        def recorded(*of: Any, enough: float) -> Any:
            enough_each.append(enough)
            per_token, _, results = measure(*of, enough=min(enough, 0.1))
            return per_token, took, results

        monkeypatch.setattr(probing, "_seconds_per_token", recorded)
        prepare_study(replace(seven, name=name, recipe=replace(seven.recipe, epochs=epochs)), stores, SilentLog())
        probing.probe(name, stores, SilentLog())
        return enough_each

    # The first steps tell how long the study is.
    assert asked("short", 1, took=0.01) == [0.0, *[pytest.approx(0.2 * 1.5)] * 2]
    assert asked("long", 100_000, took=0.01) == [0.0, 1.5, 1.5]
    assert asked("slow", 100_000, took=1.5) == [0.0, 1.5], "first steps that took long enough are not taken again"


def test_a_probe_that_runs_out_of_memory_stops_nothing(seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    from clusterlora.errors import OutOfMemory

    def out_of_memory(*_: object) -> Probe:
        raise OutOfMemory("training probe-0 ran out of memory at micro-batch 2", micro_batch=2)

    prepare_study(seven, stores, SilentLog())
    monkeypatch.setattr(probing, "_measure", out_of_memory)
    assert probing.probe("small", stores, SilentLog()) is None
    assert sentences(read_state("small", stores)) == ()


def test_the_rest_of_a_recorded_study_was_expected_within_thirty_percent_after_its_gate() -> None:
    """80 speakers of Shakespeare on homelm, two workers on two cores that others used, too: rates as probed, seconds as recorded."""
    lengths = MeanTokens(dialogue=130.8, prompt=71.65, response=52.62)
    rates = Rates(train_alone=2.884e-4, train_together=1.964e-4, n_together=26, read=8.288e-5, write=1.561e-3, embed=0.0822, load=0.405)
    probe = Probe(lengths=lengths, rates=rates, device="cpu, 24 GiB", seconds=22.3)
    person = 3 * lengths.dialogue * 1427 / 80
    # Unified and cluster 0, of three people, took 201.4 s.
    ratio = 201.4 / (2 * rates.load + 83 * person * rates.train_alone)
    corrected = replace(rates, train_alone=ratio * rates.train_alone, train_together=ratio * rates.train_together)
    work = Work(
        n_dialogues=1427 + 475 + 441,
        texts=0,
        gate=(),
        gate_answers=Answering(),
        beside_gate=Answering(),
        fan_out=((64 * person, 7 * person, 3 * person, 3 * person, *(80 * (person,))),),
        evaluation=Answering(n_answers=3 * 441, n_likelihoods=3 * 475),
    )
    study = prepared_settings(Study(), "float32")
    left = expected(work, replace(probe, rates=corrected), 2, study, n_shards=2)
    # From the gate's verdict at 5:31 to the last answer at 12:15.
    assert left.total == pytest.approx(404, rel=0.3)
    assert left.evaluation == pytest.approx(2 * 60 + 11, rel=0.3)
