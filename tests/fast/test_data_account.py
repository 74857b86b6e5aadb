"""Nothing is lost in silence: every dialogue that was read is used in a split, or left out and counted by the reason why."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.cli import main
from clusterlora.config import resolve
from clusterlora.data.load import load
from clusterlora.data.split import SplitPlan, split_persona
from clusterlora.data.summary import DataSummary
from clusterlora.data.validate import examine
from clusterlora.errors import BadSettings
from clusterlora.settings import DataSettings
from clusterlora.values import Dialogue, Persona, Turn

WORDS = ("sand", "rope", "lamp", "door", "moon", "fish", "nail", "salt", "bell", "coal", "wool", "milk")


def said(person: str, conversation: int, row: int) -> str:
    """Return words that no other row has in common with this one."""
    return " ".join(f"{word}{person}x{conversation}x{row}" for word in WORDS[:4])


def write(file: Path, conversations: Mapping[str, tuple[int, ...]], **more: Any) -> DataSettings:
    """Write people whose conversations have so many rows each."""
    rows = [
        {"persona_id": p, "dialogue_id": f"c{c}", "prompt": f"{said(p, c, i)}?", "response": f"{said(p, c, i)}."}
        for p, sizes in conversations.items()
        for c, size in enumerate(sizes)
        for i in range(size)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSettings(source="table", path=str(file), **more)


def accounted(summary: DataSummary) -> int:
    return summary.train + summary.val + summary.test + sum(n for _, n in summary.unused)


def used(settings: DataSettings, person: str) -> tuple[int, ...]:
    persona = load(settings).by_id()[person]
    return tuple(len(persona.of_split(split)) for split in ("train", "val", "test"))


def test_what_nobody_asked_for_is_counted_and_a_setting_uses_it(tmp_path: Path) -> None:
    people = {"ann": (1,) * 20, "bob": (1,) * 10}
    summary = examine(write(tmp_path / "a.jsonl", people, train=6, val=2, test=2))
    assert summary.read == accounted(summary) == 30
    ((reason, n_dialogues),) = summary.unused
    assert n_dialogues == 10
    assert "data.dialogues=all" in reason
    everything = write(tmp_path / "a.jsonl", people, train=6, val=2, test=2, dialogues="all")
    assert examine(everything).unused == ()
    assert (used(everything, "ann"), used(everything, "bob")) == ((12, 4, 4), (6, 2, 2))


def test_people_who_get_other_shares_than_asked_are_counted_truly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = write(tmp_path / "a.jsonl", {"ann": (56, 2, 1), "bob": (1,) * 50})
    with caplog.at_level(logging.WARNING):
        summary = examine(settings)
    assert summary.other_shares == ("ann gets 30/2/1 of 59",)
    assert "1 of 2 personas get other shares than 30/10/10 (first: ann gets 30/2/1 of 59)" in caplog.text
    assert "have fewer dialogues than" not in caplog.text
    assert dict(summary.unused) == {
        "more than train + val + test ask of a person (data.dialogues=all uses them)": 9,
        "of conversations that no split has room for": 17,
    }
    assert accounted(summary) == summary.read == 109


def test_conversations_are_kept_together_with_as_little_loss_as_possible(tmp_path: Path) -> None:
    # Largest first into train leaves room for none of the others: 7 + 3 fill 10, and the twos fill val and test.
    settings = write(tmp_path / "a.jsonl", {"ann": (7, 6, 4, 3), "bob": (1,) * 20}, train=10, val=6, test=4)
    summary = examine(settings)
    assert summary.unused == ()
    assert used(settings, "ann") == (10, 6, 4)
    persona = load(settings).by_id()["ann"]
    split_of: dict[str, set[str | None]] = {}
    for dialogue in persona.dialogues:
        split_of.setdefault(dialogue.id.split("/")[0], set()).add(dialogue.split)
    assert all(len(splits) == 1 for splits in split_of.values())


def test_with_all_dialogues_no_part_of_a_conversation_is_lost(tmp_path: Path) -> None:
    settings = write(tmp_path / "a.jsonl", {"ann": (56, 2, 1), "bob": (5, 5, 5)}, dialogues="all")
    summary = examine(settings)
    assert (summary.read, summary.unused) == (74, ())
    assert used(settings, "ann")[0] == 56


@given(st.lists(st.integers(1, 40), min_size=3, max_size=12), st.booleans())
def test_no_split_is_empty_none_has_more_than_asked_and_with_all_nothing_is_lost(sizes: list[int], use_all: bool) -> None:
    dialogues = [
        (Dialogue(f"{c}-{i}", (Turn("user", f"{said('p', c, i)}?"), Turn("assistant", f"{said('p', c, i)}."))), c)
        for c, size in enumerate(sizes)
        for i in range(size)
    ]
    persona = Persona("p", None, tuple(dialogue for dialogue, _ in dialogues))
    plan = SplitPlan({"train": 12, "val": 4, "test": 4}, 0, use_all=use_all)
    result = split_persona(persona, plan, {dialogue.id: str(c) for dialogue, c in dialogues})
    assert result.refusal is None
    counts = {name: len(result.persona.of_split(name)) for name in ("train", "val", "test")}
    assert all(counts.values())
    if use_all:
        assert sum(counts.values()) == len(dialogues)
    else:
        assert all(counts[name] <= plan.counts[name] for name in ("train", "val", "test"))
    splits_of: dict[int, set[str | None]] = {}
    split_of = {dialogue.id: dialogue.split for dialogue in result.persona.dialogues}
    for dialogue, c in dialogues:
        if dialogue.id in split_of:
            splits_of.setdefault(c, set()).add(split_of[dialogue.id])
    assert all(len(splits) == 1 for splits in splits_of.values())


def test_people_with_too_few_dialogues_are_named_or_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    people = {"ann": (1,) * 6, "bob": (1,), "eva": (1,) * 6, "ivo": (1, 1)}
    refused = examine(write(tmp_path / "a.jsonl", people, train=3, val=1, test=2))
    assert refused.refusal is not None
    assert "'bob': has 1 dialogue; give it at least 3 different dialogues" in refused.refusal
    assert refused.refusal.count("or leave such people out with data.on_problem=skip") == 2
    skipping = write(tmp_path / "a.jsonl", people, train=3, val=1, test=2, on_problem="skip")
    with caplog.at_level(logging.WARNING):
        summary = examine(skipping)
    assert "2 personas of 4 left out (first: bob has 1 dialogue)" in caplog.text
    assert (summary.personas, summary.unused, summary.refusal) == (2, (("of people who cannot be split", 3),), None)
    assert accounted(summary) == summary.read == 15
    assert load(skipping).ids == ("ann", "eva")
    alone = examine(write(tmp_path / "b.jsonl", {"ann": (1,) * 6, "bob": (1,)}, train=3, val=1, test=2, on_problem="skip"))
    assert alone.refusal is not None
    assert "personas: 1 left of 2, 2 needed" in alone.refusal


def test_the_limits_that_base_and_memory_allow_are_not_said_to_hold_what_they_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "persona_id": f"p{p}",
            "prompt": f"{said(str(p), 0, i)}?",
            "response": " ".join(f"{word}{p}{i}" for word in WORDS) * (40 if i < 3 else 1),
        }
        for p in range(3)
        for i in range(9)
    ]
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ["data", "validate", "--data", str(data), "--base-model", "homelm", "--set", "evaluation.max_new_tokens=16", "--json"]
    main(asked)
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert tokens["needed_max_new_tokens"] > 16
    main(asked[:-1])
    out = capsys.readouterr().out
    assert tokens["needed_holds_answers"] < 0.95
    needed = f"--set evaluation.max_new_tokens={tokens['needed_max_new_tokens']}"
    assert f"{needed}, the most that base and memory allow, holds {tokens['needed_holds_answers']:.1%} of train" in out
    assert f"need {needed}" not in out


def test_validate_prints_the_account_and_the_lengths_in_tokens_with_the_settings_that_hold_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "a.jsonl"
    write(data, {"ann": (1,) * 12, "bob": (1,) * 12})
    asked = ["data", "validate", "--data", str(data), "--dialogues", "10", "--base-model", "homelm"]
    assert main([*asked, "--set", "evaluation.max_new_tokens=8", "--set", "model.max_length=128"]) == 0
    out = capsys.readouterr().out
    for words in ("read                     24", "not used                 4: more than train", "answers cut              20 of 20 (100%)"):
        assert words in out
    assert "need --set evaluation.max_new_tokens=" in out
    assert main([*asked, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    tokens = summary["tokens"]
    assert (tokens["answers_cut"], tokens["over_length"]) == (0, 0), "what own data leave open is chosen to hold them"
    assert any("uniform guess" in sentence for sentence in summary["warnings"])


def test_all_dialogues_may_be_asked_of_the_command() -> None:
    assert resolve(None, None, {"data.dialogues": "all"}).data.dialogues == "all"
    with pytest.raises(BadSettings, match=r"data\.dialogues"):
        resolve(None, None, {"data.dialogues": "some"})
