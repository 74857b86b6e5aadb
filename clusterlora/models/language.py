"""Which answers are in another language than English: told by letters, each language's commonest words and an English vocabulary."""

import re
import unicodedata
from collections.abc import Container, Sequence
from dataclasses import dataclass

_ENGLISH = frozenset(
    "the and you that with have not this but are they my if your what there out up get just like from about".split()  # noqa: SIM905
)
"""Common words that are not common in other languages: `in` and `was` are German, too, `a` and `no` Romance, `to` and `i` Slavic."""

_FOREIGN = frozenset(
    word
    for words_of_language in (
        "und ist nicht ich der das ein eine einen sie wir auch sich wie wenn aber noch nur oder nach auf aus zum zur sind habe haben wird",
        "est une dans que qui je vous nous pas avec elle mais sont cette leur votre notre aux moi toi suis",
        "que una por para como pero esta este muy sus del se te cuando donde todo nada",
        "mas isso muito seu sua das ele isto nos",
        "che sono della nel questo questa anche gli quando ma ci molto",
        "het een niet ik zijn voor maar naar wij jij je bij uit heb heeft deze geen ook",
        "och det att jag inte som ett har ikke jeg og hvor vil fra kan vi",
        "nie jak czy tak mnie jestem przez dla tego",
        "jsem jako je nebo tak kde",
        "hogy nem egy az ez csak",
        "bir bu ile gibi daha ama",
        "yang ini itu dengan untuk tidak dari saya akan anda kami juga",
        "este nu pentru sunt",
        "ja ei oli mutta kun niin se",
        "ang mga ng ako hindi",
        "nije kako ili",
        "kwa hii yake",
    )
    for word in words_of_language.split()
)
"""German, French, Spanish, Portuguese, Italian, Dutch, Scandinavian, Polish, Czech, Hungarian, Turkish, Indonesian, Romanian, Finnish,
Tagalog, Croatian and Swahili, without words that English or its names have (`die`, `van`, `los`, `non`)."""

_LEAST_EVIDENCE = 2
"""Different words of another language that an answer must have: one is a loan or part of a name."""
_LEAST_WORDS = 4
"""Words from which an answer without words of another language counts as told."""
_LEAST_SMALL = 3
"""Words that begin with a small letter, and so are no names, from which a vocabulary tells of one answer. Of 6,000 answers of Shakespeare's
characters 20 have so many of which it lacks half, and no headline, title or confirmation without function words."""
_LEAST_PROSE = 30
"""Words of all answers from which the share in a vocabulary is told."""

_WORD = re.compile(r"[^\W\d_]+")
_CODE = re.compile(r"[{}=<>\[\]|\\^~]|\w\(")


@dataclass(frozen=True, slots=True)
class Languages:
    """Of answers: how many are in another language than English, among how many that are long enough to tell.

    `known_words` is the share of words in those that are no code that an English vocabulary has, 0.8 and more in English prose, telegraphic
    or not, and 0.6 at most in twenty other languages; None where there are too few words to tell. A menu or a clinician's notes may have
    0.5, too: neither number is more than a hint.
    """

    n_foreign: int
    n_told: int
    known_words: float | None


def languages(answers: Sequence[str], vocabulary: Container[str]) -> Languages:
    """Return what the answers' letters and words tell of their languages.

    Args:
        vocabulary: English words in small letters, such as BERT's 30,000 tokens, which have words and names of other languages, too.
    """
    foreign = [_is_foreign(answer, vocabulary) for answer in answers]
    n_told = sum(is_foreign or len(_words(answer)) >= _LEAST_WORDS for is_foreign, answer in zip(foreign, answers, strict=True))
    prose = [word.lower() for answer in answers if not _CODE.search(answer) for word in _words(answer)]
    known_words = sum(word in vocabulary for word in prose) / len(prose) if len(prose) >= _LEAST_PROSE else None
    return Languages(sum(foreign), n_told, known_words)


def _is_foreign(answer: str, vocabulary: Container[str]) -> bool:
    """Return whether most letters are of no Latin script, more words are another language's than English ones, or half are unknown.

    Other scripts count where a word has two such letters: a formula has single ones. Words with accents and unknown ones count where they
    begin with a small letter: names are foreign in English, too.
    """
    words = _words(answer)
    n_other = sum(len(word) for word in words if sum(map(_is_of_another_script, word)) > 1)
    if 2 * n_other > sum(map(len, words)):
        return True
    distinct = {word.lower() for word in words}
    small = [word.lower() for word in words if word[0].islower()]
    unknown = [word for word in small if word not in vocabulary]
    of_others = distinct & _FOREIGN | {word for word in small if len(word) > 1 and not word.isascii()}
    evidence = len(of_others.union(unknown)) if of_others else 0
    if evidence >= _LEAST_EVIDENCE and evidence > len(distinct & _ENGLISH):
        return True
    return len(small) >= _LEAST_SMALL and 2 * len(unknown) >= len(small) and not _CODE.search(answer)


def _words(answer: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", answer))


def _is_of_another_script(char: str) -> bool:
    return not char.isascii() and "LATIN" not in unicodedata.name(char, "")
