"""Splits: stable, disjoint, of the configured sizes, and without the same text in two splits."""

import logging
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.duplicates import duplicate_groups, normalised_text
from clusterlora.data.leaks import find_leaks
from clusterlora.data.load import split
from clusterlora.data.near_sets import NEAR
from clusterlora.data.problems import Problems
from clusterlora.data.source import SourceData
from clusterlora.data.split import ENOUGH_TEST, SPLITS, SplitPlan, apportion, split_persona
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn

WORDS = [f"word{i}" for i in range(12)]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(" ".join)
CONVERSATIONS = st.sampled_from(["a", "b", "c", "d", "e", None])
ROWS = st.lists(st.tuples(TEXTS, CONVERSATIONS), min_size=3, max_size=25)
COUNTS = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))


def dialogue_of(name: str, text: str, given_split: Split | None = None) -> Dialogue:
    return Dialogue(name, (Turn("user", text), Turn("assistant", f"yes {text}")), split=given_split)


def person(texts: list[str], name: str = "ann") -> Persona:
    return Persona(name, None, tuple(dialogue_of(f"d{i}", text) for i, text in enumerate(texts)))


def plan(train: int = 3, val: int = 1, test: int = 1, seed: int = 0) -> SplitPlan:
    return SplitPlan({"train": train, "val": val, "test": test}, seed)


def splits_by_id(persona: Persona) -> dict[str, Split | None]:
    return {dialogue.id: dialogue.split for dialogue in persona.dialogues}


def different(n: int, prefix: str = "") -> list[str]:
    return [f"{prefix}subject{i} verb{i} object{i}" for i in range(n)]


@given(rows=ROWS, counts=COUNTS, seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_input(
    rows: list[tuple[str, str | None]], counts: tuple[int, int, int], seed: int, order: Random
) -> None:
    persona = person([text for text, _ in rows])
    conversations = {f"d{i}": talk for i, (_, talk) in enumerate(rows) if talk}
    shuffled = list(persona.dialogues)
    order.shuffle(shuffled)
    one = split_persona(persona, plan(*counts, seed=seed), conversations)
    other = split_persona(Persona("ann", None, tuple(shuffled)), plan(*counts, seed=seed), conversations)
    assert one.refusal == other.refusal
    assert splits_by_id(one.persona) == splits_by_id(other.persona)


@given(rows=ROWS, counts=COUNTS)
def test_duplicates_are_never_on_two_sides_and_no_split_is_empty_or_too_large(
    rows: list[tuple[str, str | None]], counts: tuple[int, int, int]
) -> None:
    persona = person([text for text, _ in rows])
    done = split_persona(persona, plan(*counts), {f"d{i}": talk for i, (_, talk) in enumerate(rows) if talk})
    if done.refusal:
        assert len(duplicate_groups(persona.dialogues)) < 3
        return
    assert not find_leaks([done.persona])
    for name, n_wanted in zip(SPLITS, counts, strict=True):
        assert 1 <= len(done.persona.of_split(name)) <= n_wanted


@given(rows=ROWS)
def test_a_conversation_is_never_on_two_sides_unless_the_result_says_so(rows: list[tuple[str, str | None]]) -> None:
    conversations = {f"d{i}": talk for i, (_, talk) in enumerate(rows) if talk}
    done = split_persona(person([text for text, _ in rows]), plan(5, 2, 2), conversations)
    if done.refusal or done.by_row:
        return
    sides: dict[str, set[Split | None]] = {}
    for dialogue in done.persona.dialogues:
        if dialogue.id in conversations:
            sides.setdefault(conversations[dialogue.id], set()).add(dialogue.split)
    assert all(len(splits) == 1 for splits in sides.values())


@given(n=st.integers(3, 80), counts=COUNTS)
def test_shares_of_too_few_dialogues_use_all_of_them_in_proportion(n: int, counts: tuple[int, int, int]) -> None:
    expected = dict(zip(SPLITS, counts, strict=True))
    given_out = apportion(n, expected)
    assert sum(given_out.values()) == min(n, sum(counts))
    moved = max(0, min(ENOUGH_TEST, expected["test"]) - 1)
    for name in SPLITS:
        exact = expected[name] * min(1.0, n / sum(counts))
        # Raising one split to 1 costs another at most 1 more, and filling up test takes from the other two.
        least, most = (0, moved + 1) if name == "test" else (moved, 0)
        assert max(1, exact - 2.0 - least) <= given_out[name] <= max(1.0, exact + 1.0, most)


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        (12, (6, 2, 4)),
        (10, (5, 2, 3)),
        (8, (4, 1, 3)),
        (6, (3, 1, 2)),
        (3, (1, 1, 1)),
        (20, (12, 4, 4)),
        (40, (24, 8, 8)),
        (50, (30, 10, 10)),
    ],
)
def test_who_has_few_dialogues_keeps_enough_of_them_to_test(n: int, shares: tuple[int, int, int]) -> None:
    assert tuple(apportion(n, {"train": 30, "val": 10, "test": 10}).values()) == shares


def test_no_more_is_kept_to_test_than_was_asked_for() -> None:
    assert apportion(10, {"train": 16, "val": 2, "test": 2}) == {"train": 7, "val": 1, "test": 2}


@given(texts=st.lists(TEXTS, max_size=20))
def test_duplicate_groups_are_those_found_by_comparing_every_pair(texts: list[str]) -> None:
    dialogues = person(texts).dialogues
    word_sets = [set(normalised_text(dialogue).split()) for dialogue in dialogues]
    groups = list(range(len(texts)))
    for i, one in enumerate(word_sets):
        for j, other in enumerate(word_sets[:i]):
            if len(one & other) >= NEAR * len(one | other):
                groups = [groups[j] if group == groups[i] else group for group in groups]
    group_by_position = {position: k for k, group in enumerate(duplicate_groups(dialogues)) for position in group}
    for i in range(len(texts)):
        for j in range(i):
            assert (group_by_position[i] == group_by_position[j]) == (groups[i] == groups[j])


def test_enough_different_dialogues_give_exactly_the_counts_asked_for() -> None:
    done = split_persona(person(different(60)), plan(30, 10, 10), {})
    assert [len(done.persona.of_split(name)) for name in SPLITS] == [30, 10, 10]


def test_the_seed_and_the_persona_change_the_split() -> None:
    texts = different(20)
    one = splits_by_id(split_persona(person(texts), plan(10, 5, 5), {}).persona)
    assert one != splits_by_id(split_persona(person(texts), plan(10, 5, 5, seed=1), {}).persona)
    assert one != splits_by_id(split_persona(person(texts, "bob"), plan(10, 5, 5), {}).persona)


def test_case_space_and_punctuation_do_not_make_a_dialogue_different() -> None:
    assert duplicate_groups(person(["Lights on, please!", "lights  ON please", "Lights off, please!"]).dialogues) == ((0, 1), (2,))


def test_a_dialogue_of_one_large_conversation_does_not_starve_the_other_splits() -> None:
    persona = person(different(30))
    conversations = {f"d{i}": "long" for i in range(28)}
    done = split_persona(persona, plan(18, 6, 6), conversations)
    assert not done.by_row
    assert [len(done.persona.of_split(name)) for name in SPLITS] == [18, 1, 1]


def test_a_persona_of_two_conversations_is_split_row_by_row_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    people = [person(different(10, name), name) for name in ("ann", "bob")]
    talks = {("ann", f"d{i}"): "scene 1" if i < 5 else "scene 2" for i in range(10)}
    with caplog.at_level(logging.WARNING):
        done = split(
            SourceData(Dataset(tuple(people)), conversation_by_dialogue=talks), DataSettings(train=6, val=2, test=2), problems := Problems()
        )
    problems.raise_any()
    assert [len(done.dataset.personas[0].of_split(name)) for name in SPLITS] == [6, 2, 2]
    assert "1 of 2 personas have fewer than 3 conversations" in caplog.text


def test_fewer_dialogues_than_asked_keep_the_shares_and_enough_to_test_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        done = split(SourceData(Dataset((person(different(10)),))), DataSettings(train=30, val=10, test=10), Problems())
    assert [len(done.dataset.personas[0].of_split(name)) for name in SPLITS] == [5, 2, 3]
    assert "have fewer dialogues than 30/10/10 (first: ann gets 5/2/3 of 10)" in caplog.text


def test_text_that_two_personas_share_is_in_the_same_split_for_both() -> None:
    shared = different(6, "shared ")
    people = Dataset(tuple(person([*shared, *different(20, name)], name) for name in ("ann", "bob", "carl")))
    done = split(SourceData(people), DataSettings(train=10, val=5, test=5), Problems())
    assert not find_leaks(done.dataset.personas)
    for persona in done.dataset.personas:
        assert [len(persona.of_split(name)) for name in SPLITS] == [10, 5, 5]


def test_personas_with_only_shared_text_can_still_be_split() -> None:
    done = split(
        SourceData(Dataset(tuple(person(different(10), name) for name in "abc"))), DataSettings(train=6, val=2, test=2), Problems()
    )
    assert not find_leaks(done.dataset.personas)
    for persona in done.dataset.personas:
        assert [len(persona.of_split(name)) for name in SPLITS] == [6, 2, 2]


def test_a_given_split_is_kept_but_a_train_dialogue_that_test_repeats_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    sides: list[Split] = ["train", "train", "train", "val", "test", "test"]
    dialogues = [dialogue_of(f"d{i}", text, side) for i, (text, side) in enumerate(zip(different(6), sides, strict=True))]
    dialogues.append(dialogue_of("d6", "Subject4, verb4, object4!", "train"))
    with caplog.at_level(logging.WARNING):
        done = split(
            SourceData(Dataset((Persona("ann", None, tuple(dialogues)),))), DataSettings(train=9, val=9, test=9), problems := Problems()
        )
    problems.raise_any()
    assert splits_by_id(done.dataset.personas[0]) == {f"d{i}": side for i, side in enumerate(sides)}
    assert "1 dialogues left out" in caplog.text
