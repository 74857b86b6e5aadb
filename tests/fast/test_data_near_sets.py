"""The similarity join finds the pairs that comparing all of them finds."""

from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.near_sets import NEAR, NearSets, WordNumbers

WORDS = range(60)
CHANGED = st.lists(st.frozensets(st.sampled_from(WORDS), max_size=6), max_size=12)


@given(base=st.frozensets(st.sampled_from(WORDS), max_size=50), changes=CHANGED, others=CHANGED)
def test_near_sets_are_those_found_by_comparing_every_pair(
    base: frozenset[int], changes: list[frozenset[int]], others: list[frozenset[int]]
) -> None:
    """Most sets are a base set but for a few words: around the threshold, where a filter would miss one."""
    sets = [tuple(sorted(one)) for one in (base, *(base ^ change for change in changes), *others)]
    index = NearSets(sets)
    for words in (*sets, tuple(sorted(base | {60, 61}))):
        own = set(words)
        expected = [i for i, other in enumerate(sets) if len(own & set(other)) >= NEAR * len(own | set(other))]
        assert sorted(index.near(words)) == expected


def test_sets_at_the_threshold_are_near_and_those_below_it_are_not() -> None:
    nineteen = tuple(range(19))
    index = NearSets([tuple(range(20))])
    assert list(index.near(nineteen)) == [0]
    assert list(index.near(tuple(range(18)))) == [0], "18 of 20 words are exactly 0.9"
    assert list(index.near(tuple(range(17)))) == []
    assert list(index.near((*nineteen, 20))) == [0], "19 of 21 words"
    assert list(index.near((*range(18), 20, 21))) == [], "18 of 22 words"


def test_few_pairs_are_compared_where_every_word_is_frequent() -> None:
    """Of 1,000 sets of 30 of 60 words, any word is in half of them; what an index of single words would compare is nearly all pairs."""
    from random import Random

    rng = Random(0)
    sets = [tuple(sorted(rng.sample(WORDS, 30))) for _ in range(1000)]
    index = NearSets(sets)
    n_compared = sum(len(index.candidates(words)) for words in sets)
    assert n_compared < 20 * len(sets)


def test_words_have_one_number_each() -> None:
    words = WordNumbers()
    assert words.numbers(["on", "lights", "on"]) == (0, 1)
    assert words.numbers(["off", "lights"]) == (1, 2)
