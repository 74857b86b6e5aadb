"""Which answers are in another language than English: told by their letters and by the commonest words of each language."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_ENGLISH = frozenset(
    "the and you that with have not this but are they my if your what there out up get just like from about".split()  # noqa: SIM905
)
"""Common words that are not common in other languages: `in` and `was` are German, too, `a` and `no` Romance, `to` and `i` Slavic."""

_FOREIGN = frozenset(
    word
    for words_of_language in (
        "und ist nicht ich der das ein eine einen sie wir auch sich wie wenn aber noch nur oder nach zum zur sind habe haben wird dass",
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
_LEAST_WORDS = 6
"""Words from which an answer without words of another language counts as told."""
_MANY_WORDS = 30
"""Words of an answer without a common English one that tell of a language that is not listed; of 1,648 such of Shakespeare one has none."""
_LEAST_PROSE = 50
"""Words of such answers from which the share of common English ones is told: English has none below 5 % among so many."""

_WORD = re.compile(r"[^\W\d_]+")
_CODE = re.compile(r"[{}=<>\[\]|\\^~]|\w\(")


@dataclass(frozen=True, slots=True)
class Languages:
    """Of answers: how many are in another language than English, among how many that are long enough to tell.

    `english_words` is the share of common English words in those that are no code, 0.16 to 0.23 in English and 0 to 0.02 in ten other
    languages; None where they have too few words to tell.
    """

    n_foreign: int
    n_told: int
    english_words: float | None


def languages(answers: Sequence[str]) -> Languages:
    """Return what the answers' letters and commonest words tell of their languages."""
    foreign = [_is_foreign(answer) for answer in answers]
    words_by_answer = [_WORD.findall(answer.lower()) for answer in answers]
    n_told = sum(is_foreign or len(said) >= _LEAST_WORDS for is_foreign, said in zip(foreign, words_by_answer, strict=True))
    prose = [
        word
        for answer, said in zip(answers, words_by_answer, strict=True)
        if len(said) >= _LEAST_WORDS and not _CODE.search(answer)
        for word in said
    ]
    english_words = sum(word in _ENGLISH for word in prose) / len(prose) if len(prose) >= _LEAST_PROSE else None
    return Languages(sum(foreign), n_told, english_words)


def _is_foreign(answer: str) -> bool:
    """Return whether most letters are of no Latin script, more words are another language's than English ones, or none of many is English.

    Other scripts count where a word has two such letters: a formula has single ones. Words with accents count where they begin with a
    small letter: names have accents in English, too.
    """
    words = _WORD.findall(unicodedata.normalize("NFC", answer))
    n_other = sum(len(word) for word in words if sum(map(_is_of_another_script, word)) > 1)
    if 2 * n_other > sum(map(len, words)):
        return True
    of_others = {word.lower() for word in words if word.lower() in _FOREIGN or (len(word) > 1 and word[0].islower() and not word.isascii())}
    english = {word.lower() for word in words} & _ENGLISH
    if len(of_others) >= _LEAST_EVIDENCE and len(of_others) > len(english):
        return True
    return len(words) >= _MANY_WORDS and not english and not _CODE.search(answer)


def _is_of_another_script(char: str) -> bool:
    return not char.isascii() and "LATIN" not in unicodedata.name(char, "")
