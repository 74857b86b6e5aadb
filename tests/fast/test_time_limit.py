"""A study that may take so many minutes is cut to them by the pace of its probe, and says so."""

from dataclasses import replace

import pytest

from clusterlora.cli.local_steps import _prepare_study as prepare_step
from clusterlora.cli.progress import console_log
from clusterlora.config import resolve
from clusterlora.errors import BadSettings
from clusterlora.metadata import Cut, MeanTokens, Probe, Provenance, Rates, Workers
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.estimate import cut_sentence, estimate, sentences
from clusterlora.progress.time_limit import cut_to_time
from clusterlora.progress.work import assumed_clustering
from clusterlora.pseudonyms import pseudonym
from clusterlora.settings import Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.erase import erase_from_study
from clusterlora.stages.forget import what_to_forget
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.privacy import canary_copy
from clusterlora.stages.probe import ready
from clusterlora.values import Attempt, Dataset, Persona, Split
from tests.fixtures.stages import Notes

RATES = Rates(train_alone=0.02, train_together=0.02, n_together=4, read=0.001, write=0.03, embed=0.0, load=2.0)
PROBE = Probe(lengths=MeanTokens(dialogue=100.0, prompt=60.0, response=10.0), rates=RATES, device="cpu, 8 GiB", seconds=5.0)
N_PEOPLE = 28


@pytest.fixture
def crowd(seven: Study, stores: Stores) -> StudyState:
    """Return 28 people with 12 train, 4 val and 4 test dialogues each, probed."""
    prepare_study(replace(seven, methods=("baseline", "unified", "cluster", "per_persona")), stores, SilentLog())
    state = read_state("small", stores)
    counts: dict[Split, int] = {"train": 12, "val": 4, "test": 4}

    def like(number: int) -> Persona:
        model = state.dataset.personas[number % 7]
        own = tuple(replace(model.of_split(split)[0], id=f"{split}-{position}") for split, n in counts.items() for position in range(n))
        return replace(model, id=f"person-{number:02d}", dialogues=own)

    many = Dataset(tuple(like(number) for number in range(N_PEOPLE)))
    clusters = replace(state.settings.clustering, sizes=None, k=2)
    settings = replace(state.settings, data=replace(state.settings.data, **counts), clustering=clusters)  # pyrefly: ignore[bad-argument-type]
    return replace(
        state, settings=settings, data=many, probe=PROBE, n_workers=2, seconds=(("prepare", "all", 20.0), ("probe", "all", 40.0))
    )


def within(state: StudyState, minutes: float | None) -> StudyState:
    return replace(state, settings=replace(state.settings, minutes=minutes))


def minutes_of(state: StudyState) -> float:
    whole = estimate(state)
    assert whole is not None
    return (whole.total + 60.0) / 60


def test_a_study_that_fits_or_may_take_its_time_keeps_everything(crowd: StudyState) -> None:
    assert cut_to_time(within(crowd, None)) is None
    assert cut_to_time(within(crowd, minutes_of(crowd) + 0.01)) is None
    # The seconds that preparation and probe took are gone.
    assert cut_to_time(within(crowd, minutes_of(crowd) - 0.5)) is not None
    assert cut_to_time(replace(within(crowd, 1), probe=None)) is None


def test_dialogues_become_fewer_before_people_do_and_what_is_left_fits(crowd: StudyState) -> None:
    whole = minutes_of(crowd)
    before = Cut(of_personas=N_PEOPLE, n_personas=N_PEOPLE, train=12, val=4, test=4, whole=0.0, expected=60 * whole, fits=True)
    for share in (0.9, 0.7, 0.6, 0.5, 0.4, 0.3):
        cut = cut_to_time(within(crowd, share * whole))
        assert cut is not None
        assert cut.fits
        assert cut.expected <= 60 * share * whole - 60
        assert cut.whole == pytest.approx(60 * whole - 60)
        assert cut.expected < before.expected
        assert (cut.n_personas, cut.train, cut.val, cut.test) <= (before.n_personas, before.train, before.val, before.test)
        assert cut.n_personas == N_PEOPLE or (cut.train, cut.val, cut.test) == (6, 2, 2)
        before = cut
    assert before.n_personas < N_PEOPLE


def test_a_slower_machine_is_left_less(crowd: StudyState) -> None:
    slow = replace(PROBE, rates=replace(RATES, train_alone=0.05, train_together=0.05))
    minutes = 0.8 * minutes_of(crowd)
    cuts = [cut_to_time(within(replace(crowd, probe=probe), minutes)) for probe in (PROBE, slow)]
    quick, late = (cut for cut in cuts if cut is not None)
    assert late.n_personas * late.train < quick.n_personas * quick.train
    assert late.expected <= 60 * minutes - 60


def test_what_cannot_be_cut_to_its_minutes_says_how_long_it_takes(crowd: StudyState) -> None:
    cut = cut_to_time(within(crowd, 2))
    assert cut is not None
    assert (cut.n_personas, cut.train, cut.val, cut.test, cut.fits) == (12, 3, 1, 2, False)
    said = cut_sentence(replace(within(crowd, 2), cut=cut))
    assert said is not None
    assert said.startswith("cut to minutes = 2: the first 12 of 28 people with at most 3 train, 1 val and 2 test dialogues each, about ")
    assert "that is longer" in said
    sized = replace(crowd.settings.clustering, sizes=(8, 20), k=2)
    kept = cut_to_time(within(replace(crowd, settings=replace(crowd.settings, clustering=sized)), 2))
    assert kept is not None
    assert kept.n_personas == N_PEOPLE


def test_what_has_begun_is_not_cut_and_a_probe_is_no_beginning(crowd: StudyState) -> None:
    late = within(crowd, 2)
    assert cut_to_time(replace(late, attempts=(Attempt("evaluate · probe 1/1 · small", 1, 64, "done", "", None),))) is not None
    assert cut_to_time(replace(late, clustering=assumed_clustering(late))) is None
    assert cut_to_time(replace(late, cut=cut_to_time(late))) is None


def cut_seven(seven: Study, stores: Stores) -> Study:
    """Prepare and probe seven people whose study may take a few seconds."""
    study = replace(seven, minutes=0.01, methods=("baseline", "unified", "cluster", "per_persona"))
    prepare_study(study, stores, SilentLog())
    stores.studies.save_metadata("small", PROBE)
    return study


def test_a_cut_study_works_on_what_is_left_and_stays_so_when_it_is_prepared_again(seven: Study, stores: Stores) -> None:
    study = cut_seven(seven, stores)
    whole = read_state("small", stores).dataset
    state = ready("small", 2, stores, SilentLog())
    assert state.cut is not None
    assert state.cut.train < 3 or state.cut.test < 2 or state.cut.val < 2
    assert state.dataset.n_dialogues < whole.n_dialogues
    assert stores.studies.metadata("small", Workers) == Workers(2)
    assert stores.studies.dataset("small") == whole
    said = sentences(state)
    assert cut_sentence(state) in said
    notes = Notes()
    prepare_study(study, stores, notes)
    again = ready("small", 2, stores, notes)
    assert (again.cut, again.dataset) == (state.cut, state.dataset)
    made_from = stores.studies.metadata("small", Provenance)
    assert made_from is not None
    assert made_from.n_dialogues == state.dataset.n_dialogues
    assert sum(map(len, cluster_study("small", stores, SilentLog()).members)) == 7


def test_who_is_forgotten_takes_nobody_elses_place(seven: Study, stores: Stores) -> None:
    cut_seven(seven, stores)
    first, second, *others = stores.studies.dataset("small").ids
    cut = Cut(of_personas=7, n_personas=4, train=2, val=1, test=1, whole=9.0, expected=5.0, fits=True)
    stores.studies.save_metadata("small", cut)
    assert read_state("small", stores).dataset.ids == (first, second, *others[:2])
    stores.studies.set_status("small", "stopped")
    person = pseudonym(stores.home, first, make_key=True)
    (removal,) = what_to_forget(person, stores).studies
    erase_from_study(removal, person, stores, ["small"])
    made_from = stores.studies.metadata("small", Provenance)
    assert made_from is not None
    assert (made_from.n_personas, made_from.n_dialogues) == (3, read_state("small", stores).dataset.n_dialogues)
    assert read_state("small", stores).dataset.ids == (second, *others[:2])


def test_without_a_probe_it_is_said_that_nothing_is_left_out(seven: Study, stores: Stores) -> None:
    prepare_study(replace(seven, minutes=1), stores, SilentLog())
    notes = Notes()
    assert ready("small", 1, stores, notes).cut is None
    assert notes.notes == ["minutes = 1: nothing is left out, since it is not known how long the study will take"]


def test_of_a_study_that_is_clustered_already_nothing_is_left_out_and_that_is_said(seven: Study, stores: Stores) -> None:
    cut_seven(seven, stores)
    cluster_study("small", stores, SilentLog())
    notes = Notes()
    assert ready("small", 2, stores, notes).cut is None
    assert notes.notes == ["minutes = 0.01: nothing is left out, as its people are clustered already; it takes longer"]


def test_a_single_step_says_that_it_leaves_nothing_out(seven: Study, stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    study = replace(seven, minutes=0.01)
    for _ in range(2):
        with console_log() as log:
            prepare_step(study, stores, log)
    assert capsys.readouterr().err.count("minutes = 0.01: single steps leave nothing out; `clusterlora study run` would") == 1


def test_canaries_are_planted_in_as_much_as_a_cut_study_learns_from(seven: Study, stores: Stores) -> None:
    cut_seven(seven, stores)
    stores.studies.save_metadata("small", Cut(of_personas=7, n_personas=4, train=2, val=1, test=1, whole=9.0, expected=5.0, fits=True))
    copy = canary_copy("small", 3, stores)
    assert (copy.minutes, copy.data.personas, copy.data.train, copy.data.val, copy.data.test) == (None, 4, 2, 1, 1)
    with pytest.raises(BadSettings, match=r"minutes = 3: may leave out what data.canaries = 2 plants; add --set minutes=none"):
        resolve("quick", overrides={"minutes": 3, "data.canaries": 2})


def test_the_presets_for_own_data_promise_a_quarter_of_an_hour_and_a_night() -> None:
    assert (resolve("taste").minutes, resolve("overnight").minutes, resolve("mission").minutes) == (15, 480, None)


def test_a_cut_leaves_as_many_people_as_the_clusters_take(crowd: StudyState) -> None:
    clustering = replace(crowd.settings.clustering, k=6)
    state = within(replace(crowd, settings=replace(crowd.settings, clustering=clustering)), 1.1)
    cut = cut_to_time(state)
    assert cut is not None
    assert cut.n_personas == 6 * clustering.min_size > 12
