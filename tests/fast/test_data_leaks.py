"""Planted leaks of each kind are found: rows that hold the history so far, one conversation in several rows, and twins of other people."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.conversations import beginnings, n_overlapping, overlapping_pairs, related_groups
from clusterlora.data.duplicates import n_words, normalize, pieces
from clusterlora.data.leaks import find_leaks, leak_note
from clusterlora.data.load import load, split
from clusterlora.data.near_sets import PAIRS_APART, PAIRS_IN_COMMON, FewApart, WordNumbers
from clusterlora.data.problems import Problems
from clusterlora.data.source import SourceData
from clusterlora.data.split import SPLITS
from clusterlora.data.twins import near_twins
from clusterlora.data.validate import examine
from clusterlora.errors import BadData
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn

CASES = Path(__file__).parents[3] / "shared" / "cases"


def exchanges(persona_id: str, conversation: int, n: int) -> list[dict[str, str]]:
    """Return the messages of a conversation about its own things."""
    about = f"{persona_id} topic{conversation}"
    return [
        {"role": role, "content": f"{about} part{i} {text}"}
        for i in range(n)
        for role, text in (("user", "asks"), ("assistant", "answers"))
    ]


def growing(n_people: int = 3, n_conversations: int = 6, n: int = 4) -> list[dict[str, Any]]:
    """Return a row per exchange with the history so far, each under an id of its own."""
    return [
        {"persona_id": f"p{person}", "dialogue_id": f"{conversation}-{i}", "messages": exchanges(f"p{person}", conversation, n)[: 2 * i]}
        for person in range(n_people)
        for conversation in range(n_conversations)
        for i in range(1, n + 1)
    ]


def windows(width: int, n: int = 6, n_conversations: int = 6) -> list[dict[str, Any]]:
    """Return a row per exchange with the last exchanges before it."""
    return [
        {"persona_id": person, "messages": exchanges(person, conversation, n)[2 * max(0, i - width) : 2 * i]}
        for person in ("ann", "bob")
        for conversation in range(n_conversations)
        for i in range(1, n + 1)
    ]


def settings(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DataSettings:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given: dict[str, Any] = {"source": "table", "path": str(path), "train": 40, "val": 10, "test": 10}
    return DataSettings(**(given | changes))


def answers_in_train(dataset: Dataset) -> list[str]:
    """Return the test answers that stand verbatim anywhere in the same person's train split."""
    return [
        turn.text
        for persona in dataset.personas
        for turn in {t for d in persona.of_split("test") for t in d.turns if t.role == "assistant"}
        if any(turn in d.turns for d in persona.of_split("train"))
    ]


def test_rows_that_hold_the_history_so_far_are_one_conversation_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planted = settings(tmp_path, growing())
    with caplog.at_level(logging.WARNING):
        dataset = load(planted)
    assert answers_in_train(dataset) == []
    assert {len(d.turns) for persona in dataset.personas for d in persona.dialogues} == {8}
    assert "54 of 72 dialogues are the beginning of another" in caplog.text
    assert "the 18 whole conversations are used" in caplog.text
    summary = examine(planted)
    assert (summary.beginnings, summary.dialogues, summary.leaks) == (54, 18, 0)


@pytest.mark.parametrize("width", [2, 3])
def test_rows_that_hold_the_last_exchanges_stay_on_one_side(tmp_path: Path, width: int) -> None:
    planted = settings(tmp_path, windows(width))
    dataset = load(planted)
    assert answers_in_train(dataset) == []
    assert all(persona.of_split(split) for persona in dataset.personas for split in ("train", "val", "test"))
    assert examine(planted).leaks == 0


def test_a_person_with_a_single_conversation_in_many_rows_is_refused(tmp_path: Path) -> None:
    rows = windows(2, n_conversations=1)
    with pytest.raises(BadData, match="persona 'ann': has 5 dialogues but 1 conversation, since they share turns"):
        load(settings(tmp_path, rows))


def test_messages_of_several_rows_with_one_dialogue_id_are_one_conversation(tmp_path: Path) -> None:
    """They share no turn: only the id says so."""
    rows = [
        {"persona_id": person, "dialogue_id": f"talk {conversation}", "messages": exchanges(person, conversation, 4)[2 * i : 2 * i + 2]}
        for person in ("ann", "bob")
        for conversation in range(6)
        for i in range(4)
    ]
    dataset = load(settings(tmp_path, rows, train=16, val=4, test=4))
    for persona in dataset.personas:
        sides = {d.id.partition("/")[0]: set[Split | None]() for d in persona.dialogues}
        for d in persona.dialogues:
            sides[d.id.partition("/")[0]].add(d.split)
        assert [len(splits) for splits in sides.values()] == [1] * 6
        assert len(persona.dialogues) == 24


def test_a_dialogue_id_of_one_row_stays_the_id_of_its_dialogue(tmp_path: Path) -> None:
    rows = [{"persona_id": p, "dialogue_id": f"d{i}", "messages": exchanges(p, i, 2)} for p in ("ann", "bob") for i in range(5)]
    assert {d.id for persona in load(settings(tmp_path, rows)).personas for d in persona.dialogues} == {f"d{i}" for i in range(5)}


@pytest.mark.parametrize(("train", "test"), [(1, 4), (4, 1), (2, 3)])
def test_a_given_split_between_history_and_continuation_is_a_leak(tmp_path: Path, train: int, test: int) -> None:
    """Whichever of the two is trained on: the answers of the shorter row stand in both."""
    rows = [
        {"persona_id": p, "dialogue_id": f"{c}-{i}", "messages": exchanges(p, c, 4)[: 2 * i], "split": split}
        for p in ("ann", "bob")
        for c, i, split in ((0, 4, "train"), (1, 4, "val"), (2, 4, "test"), (3, train, "train"), (3, test, "test"))
    ]
    planted = settings(tmp_path, rows)
    assert examine(planted).leaks == 2
    dataset = load(planted)
    assert answers_in_train(dataset) == []
    assert [len(persona.dialogues) for persona in dataset.personas] == [4, 4]


NAMES = ("ana", "ben", "cleo", "dan")


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("English", "The light of the house is off now"),
        (
            "Hindi",
            "मैं ने घर की बत्ती बुझा दी है",
        ),
        ("Korean", "이 집 불 다 꺼 둘 게 요"),
    ],
)
def test_words_of_one_letter_or_syllable_between_spaces_are_words(language: str, answer: str) -> None:
    """They are letters without case, as those of scripts without spaces are."""
    words = normalize(answer).split()
    assert n_words(words) == 8
    assert pieces(normalize(answer)) == words
    turns = (("q one", answer), (f"before you told me {answer} and what else", "something other entirely"), ("unrelated thing", "yes"))
    dialogues = [Dialogue(str(n), (Turn("user", asked), Turn("assistant", said))) for n, (asked, said) in enumerate(turns)]
    assert related_groups(dialogues) == ((0, 1), (2,)), language


def twins(n: int = 12, *, ending: str = "{name}") -> list[dict[str, Any]]:
    """Return dialogues of four people that are equal but for a name."""
    return [
        {"persona_id": name, "prompt": f"light{i} room{i} please", "response": f"Warm light in room{i}, {ending.format(name=name)}"}
        for name in NAMES
        for i in range(n)
    ]


def test_dialogues_of_different_people_that_are_equal_but_for_a_name_stay_on_one_side(tmp_path: Path) -> None:
    dataset = load(settings(tmp_path, twins(), train=6, val=3, test=3))
    sides: dict[str, set[Split | None]] = {}
    for persona in dataset.personas:
        for d in persona.dialogues:
            sides.setdefault(d.turns[0].text, set()).add(d.split)
    assert [len(splits) for splits in sides.values()] == [1] * 12
    assert [len(persona.of_split("test")) for persona in dataset.personas] == [3] * 4


def test_a_given_split_between_twins_leaves_the_one_to_train_on_out(tmp_path: Path) -> None:
    order: tuple[Split, ...] = ("train", "train", "val", "test")
    rows = [row | {"split": order[(i + i // 12) % 4]} for i, row in enumerate(twins())]
    planted = settings(tmp_path, rows)
    n_leaks = sum(row["split"] != "test" for row in rows)
    assert examine(planted).leaks == n_leaks, "of every dialogue somebody has the twin in test"
    with pytest.raises(BadData, match="has all its train and val dialogues in a later split too"):
        load(planted)


def test_near_twins_in_somebody_elses_train_split_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They differ in a word that others say, too, so it is no name; each is tested on one person and learnt from two."""
    long = " ".join(f"word{i}" for i in range(30))
    order: tuple[Split, ...] = ("train", "train", "val", "test")
    planted = settings(
        tmp_path,
        [
            {
                "persona_id": name,
                "prompt": f"talk{i} first{i} {long}",
                "response": f"other{(i + j) % 5} third{i}",
                "split": order[(i + j) % 4],
            }
            for j, name in enumerate(NAMES)
            for i in range(12)
        ],
    )
    with caplog.at_level(logging.WARNING):
        dataset = load(planted)
    twins_by_split = near_twins(dataset.personas)
    assert len(twins_by_split["test"]) == expected_twins(dataset) == examine(planted).near_twins == 12
    assert len(twins_by_split["val"]) == expected_twins(dataset, "val") == 12, "the gate and what else is chosen lean on them"
    told = "12 of 12 test dialogues nearly repeat a train dialogue of somebody else, or share an exchange with one"
    assert told in caplog.text
    note = str(leak_note(dataset.personas))
    assert note.startswith(f"{told}: a leak for unified and clusters")
    assert f"{told.replace('test', 'val')}: the gate, and what else they decide, may favour unified and clusters" in note
    assert all(sentence in caplog.text for sentence in note.split(". "))
    one = [replace(person, dialogues=person.of_split("train")) for person in dataset.personas]
    one[0] = replace(one[0], dialogues=(*one[0].dialogues, dataset.personas[0].of_split("test")[0]))
    alone = "1 of 1 test dialogues nearly repeats a train dialogue of somebody else, or shares an exchange with one"
    assert str(leak_note(one)).startswith(alone)
    assert leak_note(dataset.personas[:1]) is None


def expected_twins(dataset: Dataset, split: Split = "test") -> int:
    """Return the number of near twins, by comparing every pair."""
    from clusterlora.data.duplicates import normalised_text
    from clusterlora.data.near_sets import APART, IN_COMMON, NEAR

    def near(one: set[str], other: set[str]) -> bool:
        common = one & other
        few_apart = len(common) >= IN_COMMON and max(len(one - common), len(other - common)) <= APART
        return few_apart or len(common) >= NEAR * len(one | other)

    def words(dialogue: Dialogue) -> set[str]:
        return set(normalised_text(dialogue).split())

    return sum(
        any(
            near(words(d), words(other))
            for somebody in dataset.personas
            if somebody.id != persona.id
            for other in somebody.of_split("train")
        )
        for persona in dataset.personas
        for d in persona.of_split(split)
    )


TEXTS = st.lists(st.sampled_from([f"w{i}" for i in range(8)]), min_size=1, max_size=12).map(" ".join)


@given(rows=st.lists(st.tuples(st.sampled_from(NAMES), TEXTS, st.sampled_from(["train", "val", "test"])), max_size=30))
def test_near_twins_are_those_found_by_comparing_every_pair(rows: list[tuple[str, str, Split]]) -> None:
    people = Dataset(
        tuple(
            Persona(
                name,
                None,
                tuple(
                    Dialogue(f"d{i}", (Turn("user", text), Turn("assistant", "yes")), split=split)
                    for i, (owner, text, split) in enumerate(rows)
                    if owner == name
                ),
            )
            for name in NAMES
        )
    )
    assert {split: len(twins) for split, twins in near_twins(people.personas).items()} == {
        "test": expected_twins(people),
        "val": expected_twins(people, "val"),
    }


def spoken(*texts: str, split: Split | None = None, system: str | None = None) -> Dialogue:
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Dialogue("-".join(texts), ((Turn("system", system),) if system else ()) + turns, split=split)


def test_a_beginning_has_the_split_and_the_system_text_of_the_longer_dialogue() -> None:
    longer = spoken("a", "b", "c", "d")
    assert beginnings([spoken("a", "b"), longer]) == {0}
    assert beginnings([longer, spoken("A,", "b!")]) == {1}
    assert beginnings([spoken("a", "b"), spoken("a", "b")]) == frozenset(), "equal dialogues are duplicates"
    assert beginnings([spoken("c", "d"), longer]) == frozenset()
    assert beginnings([spoken("a", "b", split="train"), spoken("a", "b", "c", "d", split="test")]) == frozenset()
    assert beginnings([spoken("a", "b", system="be brief"), longer]) == frozenset()


@pytest.mark.parametrize(
    ("one", "other", "related"),
    [
        (("a", "b"), ("a", "b", "c", "d"), True),
        (("c", "d"), ("a", "b", "c", "d"), True),
        (("c", "d", "e", "f"), ("a", "b", "c", "d"), True),
        (("a", "b"), ("c", "d"), False),
        (("a", "b"), ("a", "c"), False),
        (("d", "x"), ("a", "b", "c", "d"), False),
    ],
    ids=["beginning", "end", "end and beginning", "nothing", "the question", "an answer that is asked about"],
)
def test_dialogues_that_share_an_answered_question_where_they_meet_are_related(
    one: tuple[str, ...], other: tuple[str, ...], related: bool
) -> None:
    for pair in ((one, other), (other, one)):
        assert bool(list(overlapping_pairs([spoken(*texts) for texts in pair]))) == related


@pytest.mark.skipif(not CASES.is_dir(), reason=f"the failing cases are not at {CASES}")
def test_the_export_that_once_had_all_its_test_answers_in_train_has_none(tmp_path: Path) -> None:
    import runpy
    import sys

    sys.argv = ["make_cases.py", str(tmp_path)]
    runpy.run_path(str(CASES / "make_cases.py"), run_name="__main__")
    planted = DataSettings(source="table", path=str(tmp_path / "history_grows.jsonl"), train=3, val=1, test=1)
    dataset = load(planted)
    assert answers_in_train(dataset) == []
    assert not find_leaks(dataset.personas)
    assert examine(planted).beginnings == 8 * 5 * 4


def test_words_of_dropped_dialogues_still_tell_people_apart() -> None:
    # Levels and numbers are shared by several people in all that was read, and by nobody in the four dialogues that each one keeps.
    rooms = ("kitchen", "bedroom", "garage", "hall", "study", "attic")
    people = Dataset(
        tuple(
            Persona(
                f"p{number}",
                None,
                tuple(
                    Dialogue(
                        f"d{n}",
                        (
                            Turn("user", f"Lights in the {room}, please, as person {number} likes"),
                            Turn("assistant", f"{room} {10 * number + n}, done, as always and for ever."),
                        ),
                    )
                    for n, room in enumerate(rooms)
                ),
            )
            for number in range(0, 8, 2)
        )
    )
    done = split(SourceData(people), DataSettings(train=2, val=1, test=1), Problems())
    assert [[len(persona.of_split(name)) for name in SPLITS] for persona in done.dataset.personas] == [[2, 1, 1]] * 4


CHINESE = (
    ("请把客厅的灯调暗一点好吗", "好的，客厅的灯已经调暗到三成了"),
    ("今天晚上帮我放一点轻音乐", "正在播放上周列表里的轻音乐给你听"),
    ("空调温度能不能再低两度", "空调现在设定为二十四度比刚才凉快"),
    ("明天早上七点叫我起床吧", "闹钟定好了，早晨七点整会准时响起"),
    ("请问今天外面天气怎么样", "外边出太阳而且挺暖和，不需要带伞"),
    ("我想听一个睡前小故事呀", "从前有一座山山里有座庙住着老和尚"),
)
JAPANESE = (
    ("居間の電気を少し暗くしてもらえますか", "かしこまりました、照明を暗くしました"),
    ("今夜は静かな音楽をかけてください", "先週のリストから静かな曲を流します"),
    ("明日の朝七時に起こしてください", "目覚まし時計を七時に合わせました"),
    ("外の天気はどうなっていますか", "今日は晴れていてとても暖かいです"),
    ("寝る前に短いお話を聞きたいな", "昔々あるところにおじいさんがいました"),
    ("冷房の温度を二度下げられますか", "冷房を二十四度に設定しておきました"),
)
HINDI = (
    ("बैठक की बत्ती थोड़ी धीमी कर दो", "ठीक है मैंने बैठक की बत्ती धीमी कर दी"),
    ("आज रात हल्का संगीत चलाओ", "पिछले हफ्ते की सूची से गाने चल रहे हैं"),
    ("कल सुबह सात बजे मुझे जगा देना", "सात बजे का अलार्म लगा दिया गया है"),
    ("बाहर मौसम कैसा है बताओ", "आज धूप निकली है और काफी गर्मी है"),
    ("सोने से पहले छोटी कहानी सुनाओ", "एक जंगल में एक बूढ़ा शेर रहता था"),
    ("कमरे का तापमान दो डिग्री घटाओ", "तापमान अब बाईस डिग्री पर रखा है"),
)
THAI = (
    ("ช่วยหรี่ไฟในห้องนั่งเล่นหน่อย", "หรี่ไฟในห้องนั่งเล่นให้เรียบร้อยแล้ว"),
    ("คืนนี้เปิดเพลงเบาๆให้ฟังหน่อย", "กำลังเปิดเพลงจากรายการเมื่อสัปดาห์ก่อน"),
    ("พรุ่งนี้เช้าปลุกฉันตอนเจ็ดโมง", "ตั้งนาฬิกาปลุกเวลาเจ็ดโมงเช้าไว้แล้ว"),
    ("ข้างนอกอากาศเป็นอย่างไรบ้าง", "วันนี้แดดออกและอากาศค่อนข้างอบอุ่น"),
    ("อยากฟังนิทานสั้นก่อนนอนจัง", "กาลครั้งหนึ่งมีสิงโตแก่อยู่กลางป่าใหญ่"),
    ("ลดอุณหภูมิแอร์ลงสององศาได้ไหม", "ปรับแอร์เป็นยี่สิบสี่องศาเรียบร้อยแล้ว"),
)
ENGLISH = (
    ("could you dim the lamp a little", "The lamp in the hall is down to thirty percent"),
    ("play something quiet tonight", "Here comes the list that you made last week"),
    ("is my bedroom too warm", "It has nineteen degrees, which you like best"),
    ("wake me early tomorrow morning", "Your alarm rings at seven, before the bus leaves"),
    ("what does the weather look like outside", "Sun until noon, then clouds from the west"),
    ("tell a short story before I sleep", "Once upon a time a lion lost his roar"),
)
LANGUAGES = {"english": ENGLISH, "chinese": CHINESE, "japanese": JAPANESE, "hindi": HINDI, "thai": THAI}
Exchanges = tuple[tuple[str, str], ...]


def in_messages(talk: Exchanges, i: int) -> list[Turn]:
    """Return the answer before, and the exchange."""
    return [*(Turn("assistant", answer) for _, answer in talk[max(0, i - 1) : i]), Turn("user", talk[i][0]), Turn("assistant", talk[i][1])]


def in_answers(talk: Exchanges, i: int) -> list[Turn]:
    return [*(Turn("assistant", answer) for _, answer in talk[:i]), Turn("user", talk[i][0]), Turn("assistant", talk[i][1])]


def in_another_answer(talk: Exchanges, i: int) -> list[Turn]:
    """Return the whole history, and an answer that was made anew."""
    before = [turn for asked, answer in talk[:i] for turn in (Turn("user", asked), Turn("assistant", answer))]
    return [*before, Turn("user", talk[i][0]), Turn("assistant", f"{i}{i}")]


def in_prompt(talk: Exchanges, i: int) -> list[Turn]:
    history = "".join(f"User: {asked}\nAssistant: {answer}\n" for asked, answer in talk[:i])
    return [Turn("user", f"{history}User: {talk[i][0]}\nAssistant:"), Turn("assistant", talk[i][1])]


def in_chat_template(talk: Exchanges, i: int) -> list[Turn]:
    history = "".join(f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n" for q, a in talk[:i])
    return [Turn("user", f"{history}<|im_start|>user\n{talk[i][0]}<|im_end|>\n<|im_start|>assistant\n"), Turn("assistant", talk[i][1])]


def in_system(talk: Exchanges, i: int) -> list[Turn]:
    history = " | ".join(f"{asked} -> {answer}" for asked, answer in talk[:i])
    return [Turn("system", f"So far: {history}"), Turn("user", talk[i][0]), Turn("assistant", talk[i][1])]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("form", [in_messages, in_answers, in_prompt, in_chat_template, in_system])
def test_rows_with_the_history_in_any_form_are_one_conversation(form: Any, language: str) -> None:
    exchanges = LANGUAGES[language]
    talks = (exchanges[:3], exchanges[3:])
    rows = [Dialogue(f"{k}-{i}", tuple(form(talk, i))) for k, talk in enumerate(talks) for i in range(3)]
    assert related_groups(rows) == ((0, 1, 2), (3, 4, 5))
    assert n_overlapping(rows) == 6


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("form", [in_prompt, in_chat_template])
def test_the_first_question_of_a_persons_only_conversation_is_no_template_although_all_rows_have_it(form: Any, language: str) -> None:
    talk = tuple((question, "ok") for question, _ in LANGUAGES[language])
    rows = [Dialogue(f"d{i}", tuple(form(talk, i)), split="train" if i else "test") for i in range(4)]
    assert related_groups(rows) == ((0, 1, 2, 3),)
    ann = Persona("ann", None, tuple(rows))
    assert n_overlapping(ann.dialogues) == 4
    assert sorted(find_leaks([ann])) == [("ann", "d1"), ("ann", "d2"), ("ann", "d3")]


@pytest.mark.parametrize("form", [in_prompt, in_chat_template, in_system])
def test_a_person_who_asks_on_in_the_same_words_in_the_only_conversation_uses_no_template(form: Any) -> None:
    talk = (("could you dim the lamp", "ok"), ("could you now dim the lamp again", "ok"), ("could you dim the lamp once more", "ok"))
    rows = [Dialogue(f"d{i}", tuple(form(talk, i))) for i in range(3)]
    assert related_groups(rows) == ((0, 1, 2),)
    assert related_groups([*rows, replace(rows[0], id="again")]) == ((0, 1, 2, 3),)


@pytest.mark.parametrize("template", ["Answer like a good butler would: {}", "{} Answer like a good butler would."])
def test_words_of_a_template_tell_no_conversation(template: str) -> None:
    def rows(*talk: str) -> list[Dialogue]:
        before = [f"{template.format(asked)} ok " for asked in talk]
        return [
            Dialogue(f"{talk}{i}", (Turn("user", "".join(before[:i]) + template.format(q)), Turn("assistant", "ok")))
            for i, q in enumerate(talk)
        ]

    groups = related_groups([*rows("up", "down"), *rows("left", "up"), *rows("down", "right")])
    assert groups == ((0,), (1,), (2,), (3,), (4,), (5,))


def test_rows_whose_last_answer_was_made_anew_are_one_conversation_from_the_second_question_on() -> None:
    talks = (ENGLISH[:4], ENGLISH[2:])
    rows = [Dialogue(f"{k}-{i}", tuple(in_another_answer(talk, i))) for k, talk in enumerate(talks) for i in range(4)]
    assert related_groups(rows) == ((0,), (1, 2, 3), (4,), (5, 6, 7))


@pytest.mark.parametrize("answer", ["ok", "Done.", "The lights are on.", "灯已经打开了", "好的"])
@pytest.mark.parametrize("form", [in_messages, in_answers, in_prompt, in_chat_template, in_system])
def test_short_answers_that_fit_anywhere_join_no_conversations(form: Any, answer: str) -> None:
    talks = [tuple((f"{word}{n}", answer) for n in range(2)) for word in ("up", "down", "left")]
    rows = [Dialogue(f"{k}-{i}", tuple(form(talk, i))) for k, talk in enumerate(talks) for i in range(2)]
    groups = related_groups(rows)
    assert all(len({rows[position].id[0] for position in group}) == 1 for group in groups)
    quoting = Dialogue("q", (Turn("user", f"Why do you say {answer} whenever I ask?"), Turn("assistant", "I like to be brief.")))
    asked = Dialogue("a", (Turn("user", "Will you?"), Turn("assistant", answer)))
    assert related_groups([asked, quoting]) == ((0,), (1,))


def test_an_answer_to_several_questions_is_history_only_with_its_question() -> None:
    refusal = "I am sorry, but I cannot help you with that today."
    asked = [Dialogue(f"a{n}", (Turn("user", f"may I {what}"), Turn("assistant", refusal))) for n, what in enumerate(("fly", "swim"))]
    history = Dialogue("h", (Turn("user", f"You said: {refusal} Why?"), Turn("assistant", "Because.")))
    whole = Dialogue("w", (Turn("user", f"User: may I swim\nBot: {refusal}\nUser: why"), Turn("assistant", "Never mind.")))
    other = Dialogue("o", (Turn("user", "Lights on!"), Turn("assistant", "Done.")))
    assert related_groups([*asked, history, other]) == ((0,), (1,), (2,), (3,))
    assert related_groups([*asked, whole, other]) == ((0,), (1, 2), (3,))


def test_an_example_that_every_prompt_shows_joins_none_of_them() -> None:
    example = f"Answer as in this example. User: {ENGLISH[0][0]} Assistant: {ENGLISH[0][1]}"
    rows = [Dialogue(f"d{n}", (Turn("system", example), Turn("user", q), Turn("assistant", a))) for n, (q, a) in enumerate(ENGLISH)]
    assert related_groups(rows) == tuple((n,) for n in range(6))


def test_overlapping_rows_of_a_file_stay_on_one_side_and_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"persona_id": p, "prompt": turns[0].text, "response": turns[1].text}
        for p in ("ann", "bob")
        for k in range(6)
        for i in range(3)
        for talk in (tuple((f"{p}{k}{n}", " ".join(f"{p}{k}{n}{letter}" for letter in "abcdefg")) for n in range(3)),)
        for turns in (in_prompt(talk, i),)
    ]
    planted = settings(tmp_path, rows, train=10, val=4, test=4)
    with caplog.at_level(logging.WARNING):
        dataset = load(planted)
    for persona in dataset.personas:
        learnt = [turn.text for d in persona.of_split("train") for turn in d.turns]
        assert not any(d.turns[-1].text in text for d in persona.of_split("test") for text in learnt)
    assert "36 of 36 dialogues repeat turns of another of their person" in caplog.text
    assert examine(planted).overlapping == 36


NAMES_OF = {
    "english": ("Ana", "Ben", "Cleo", "Dan"),
    "chinese": ("小明", "小红", "阿强", "丽丽"),
    "japanese": ("太郎", "花子", "健太", "美咲"),
    "hindi": ("राम", "सीता", "मोहन", "गीता"),
    "thai": ("แดง", "ดำ", "ขาว", "ฟ้า"),
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("shift", [0, 1], ids=["shared by two", "from one pool"])
def test_twins_are_counted_whatever_names_differ_and_in_every_language(language: str, shift: int) -> None:
    """Names that several people use are no own words, so that such dialogues may be on two sides."""
    names = NAMES_OF[language]
    order: tuple[Split, ...] = ("train", "train", "val", "test")
    people = tuple(
        Persona(
            f"p{p}",
            None,
            tuple(
                Dialogue(f"d{i}", (Turn("user", q), Turn("assistant", f"{names[(p // 2 + shift * i) % 4]} {a}")), split=order[(i + p) % 4])
                for i, (q, a) in enumerate(LANGUAGES[language])
            ),
        )
        for p in range(8)
    )
    assert len(near_twins(people)["test"]) == sum(len(persona.of_split("test")) for persona in people)
    different = tuple(replace(p, dialogues=p.dialogues[i % 6 : i % 6 + 1]) for i, p in enumerate(people[:6]))
    apart = tuple(replace(p, dialogues=tuple(replace(d, split=s) for d in p.dialogues)) for p, s in zip(different, SPLITS * 2, strict=True))
    assert near_twins(apart) == {"test": [], "val": []}, "other dialogues of the same people are none"


def test_few_words_apart_are_those_found_by_comparing_every_pair_of_characters() -> None:
    rng = Random(0)
    numbers = WordNumbers()
    texts = ["".join(rng.choices("天地人你我他们来去上下", k=rng.randint(14, 20))) for _ in range(300)]
    texts += [text[:5] + "山水" + text[5:] for text in texts[:100]]
    sets = [numbers.numbers(pieces(normalize(text))) for text in texts]
    index = FewApart(sets, Counter(word for one in sets for word in one), numbers.pairs)
    n_found = 0
    for one in sets:
        expected = {
            k
            for k, other in enumerate(sets)
            for common, alone in ((len({*one} & {*other}), max(len({*one} - {*other}), len({*other} - {*one}))),)
            if common >= PAIRS_IN_COMMON and alone <= PAIRS_APART and 2 * common >= 5 * alone
        }
        assert set(index.near(one)) == expected
        n_found += len(expected)
    assert n_found > len(sets), "more than every set itself"
