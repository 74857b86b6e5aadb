"""Source `lamp`: LaMP (Salemi et al. 2024, arXiv 2304.11406) and LongLaMP (Kumar et al. 2024, arXiv 2407.11016) as published.

A person is whoever asks a question: the entries of their profile are dialogues to train on, in the words in which the benchmark asks, and
their questions with the published outputs are those to score.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.data.records import identifier, numbered, words, words_or_number
from clusterlora.data.rows import rows
from clusterlora.data.source import SourceData
from clusterlora.errors import BadData, BadSettings, printable
from clusterlora.json_text import parsed
from clusterlora.settings import DataSettings, Task
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn, digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Form:
    """How an entry of a profile becomes a prompt with an answer.

    `prompt` is filled in with the entry's fields. With a `marker`, the words of the person's question up to and with it come before: the
    benchmark's own instruction, whichever version it is. `is_asked` says that the entries answer what the questions ask.
    """

    task: Task
    prompt: str
    answer: str
    marker: str | None = None
    is_asked: bool = True


_NEWS = _Form("label", "{text}", "category", "article: ")
_MOVIES = _Form("label", "{description}", "tag", "description: ")

_LAMP: Mapping[str, _Form] = {
    "LaMP_1": _Form("label", "Write the abstract of a paper with the title: {title}", "abstract", is_asked=False),
    "LaMP_2": _MOVIES,
    "LaMP_3": _Form("rating", "{text}", "score", "review: "),
    "LaMP_4": _Form("text", "{text}", "title", "article: "),
    "LaMP_5": _Form("text", "{abstract}", "title", "paper: "),
    "LaMP_6": _Form("text", "{text}", "title", "email: "),
    "LaMP_7": _Form("text", "Write a tweet.", "text", is_asked=False),
}

_LISTED = re.compile(r"(?:tags|categories): \[([^\]]+)\]")
"""All labels of LaMP_2, as its questions list them."""

_LONG: Mapping[str, _Form] = {
    "name": _Form("text", 'Generate an abstract for the title "{title}"', "abstract"),
    "reviewerId": _Form(
        "text",
        'Generate the review text written by a reviewer who has a given an overall rating of "{overall}" for a product with description '
        '"{description}". The summary of the review text is "{summary}".',
        "reviewText",
    ),
    "author": _Form("text", "Generate the content for a reddit post {summary}", "content"),
}
"""LongLaMP's tasks by the field that says who asks: abstracts, product reviews, posts on a topic."""


@dataclass(frozen=True, slots=True)
class _Question:
    """A record of a questions file; `where` names it in messages."""

    person: str
    id: str
    text: str
    output: str
    profile: Sequence[object]
    form: _Form
    place: SourceLocation
    where: str


@dataclass(slots=True)
class _Draft:
    """A person whose questions are being read."""

    place: SourceLocation
    place_by_dialogue: dict[str, SourceLocation] = field(default_factory=dict[str, SourceLocation])
    profile: dict[str, Dialogue] = field(default_factory=dict[str, Dialogue])
    questions: dict[str, Dialogue] = field(default_factory=dict[str, Dialogue])
    is_asked: bool = True


def read_lamp(settings: DataSettings, problems: Problems) -> SourceData:
    """Return the people of a folder, or of one file, with splits: profiles are train, questions val and test.

    LaMP is `..._questions.json` with `..._outputs.json` beside it; LongLaMP is a file of records with inputs and outputs (`.json`, `.jsonl`
    or Parquet). Of a single question, which is test, val comes from the profile; that it asks something else is told.

    Raises:
        BadData: there are no such files, or no questions with outputs; or a label that is asked for stands in nobody's profile.
        BadSettings: `data.task` is not what the benchmark's task asks for.
    """
    if settings.path is None:
        raise BadData("data.path is missing; the lamp source needs a folder or file of LaMP or LongLaMP")
    files = _files(Path(settings.path))
    people: dict[str, _Draft] = {}
    for file in files:
        for question in _questions(file, f"{file.stem.removesuffix('_questions')}/" if len(files) > 1 else "", problems):
            if (task := question.form.task) != settings.task:
                raise BadSettings(f"data.task = {settings.task!r}: {file.name} asks for a {task}; set data.task={task}")
            _add(question, people, problems)
    if not people and not problems.count:
        raise BadData(f"{settings.path}: no questions with outputs; LaMP publishes outputs of its train and dev questions alone, use these")
    _check_lone_questions(people, settings.task, problems)
    if settings.task == "label" and not settings.labels:
        _refuse_unlearnt_labels(people, problems)
    personas = [Persona(name, None, _split(name, draft, settings)) for name, draft in people.items()]
    first = {name: draft.place for name, draft in people.items()}
    places = {(name, one): place for name, draft in people.items() for one, place in draft.place_by_dialogue.items()}
    return SourceData(Dataset(tuple(personas)), first, places)


def _files(path: Path) -> list[Path]:
    """Return the files with questions: that file, or all of the folder; those of LaMP if there are any."""
    if path.is_file():
        return [path]
    records = (file for kind in ("json", "jsonl", "parquet") for file in path.glob(f"*.{kind}"))
    found = sorted(path.glob("*questions.json")) or sorted(records)
    if not found:
        what = "no *_questions.json or other records in it" if path.is_dir() else "no such file or folder"
        raise BadData(f"{path}: {what}; give the files of LaMP or LongLaMP as published")
    return found


def _questions(file: Path, prefix: str, problems: Problems) -> Iterator[_Question]:
    """Yield the readable questions of a file; where LaMP has no outputs, none."""
    outputs: Mapping[str, Any] = {}
    form: _Form | None = None
    if "questions" in file.name:
        beside = file.with_name(file.name.replace("questions", "outputs"))
        if not beside.is_file():
            log.warning("%s has no %s beside it: its questions are left out", file.name, beside.name)
            return
        form, outputs = _golds(beside, problems)
        if form is None:
            return
    used: set[str] = set()
    for number, (place, record) in enumerate(_records(file, problems)):
        question = _question(record, form, outputs, (place, f"[{number}]"), problems)
        if question is None:
            continue
        if form is not None and question.id in used:
            what = f"is {question.id!r}, as that of an earlier question: which of them its output answers is not known"
            problems.add(place, f"{question.where}.id", what, "give every question of a file its own id")
            continue
        used.add(question.id)
        # Two files may number their questions and people alike; names that are given are the same person's everywhere.
        is_named = form is None or "user_id" in record
        yield replace(question, id=prefix + question.id, person=question.person if is_named else prefix + question.person)


def _golds(file: Path, problems: Problems) -> tuple[_Form | None, Mapping[str, Any]]:
    """Return the form of a task's profiles and its outputs by question; no form where the file cannot be used."""
    place, content = SourceLocation(file.name), _json(file, problems)
    name = content.get("task") if isinstance(content, dict) else None
    number = re.fullmatch(r"LaMP_(?:\w+_)?([1-7])", name) if isinstance(name, str) else None
    golds = content.get("golds") if isinstance(content, dict) else None
    if number is None or not isinstance(golds, list):
        if content is not None:
            what = f"is {name!r}, with golds of type {type(golds).__name__}"
            problems.add(place, "task", what, 'give {"task": "LaMP_3", "golds": [...]}')
        return None, {}
    usable = [gold for gold in golds if isinstance(gold, dict) and {"id", "output"} <= gold.keys()]
    if len(usable) < len(golds):
        problems.add(place, "golds", f"{len(golds) - len(usable)} of {len(golds)} lack id or output", 'write {"id": ..., "output": ...}')
    outputs: dict[str, Any] = {}
    for gold in usable:
        name, output = str(gold["id"]), gold["output"]
        if outputs.setdefault(name, output) != output:
            what = f"{name!r} has two outputs, {outputs[name]!r} and {output!r}"
            problems.add(place, "golds", what, "give every question one output")
    return _LAMP[f"LaMP_{number[1]}"], outputs


def _json(file: Path, problems: Problems) -> Any:
    """Return the content of a JSON file; None, with a problem, where it has none."""
    try:
        return parsed(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        problems.add(SourceLocation(file.name), "json", str(error), "download the file again")
        return None


def _records(file: Path, problems: Problems) -> Iterator[tuple[SourceLocation, Mapping[str, Any]]]:
    if file.suffix.lower() != ".json":
        yield from rows(file, problems)
        return
    content = _json(file, problems)
    if content is None:
        return
    if not isinstance(content, list) or not content:
        problems.add(SourceLocation(file.name), "file", f"is {type(content).__name__} of no records", "give a list of questions")
        return
    for number, record in enumerate(content):
        if isinstance(record, dict):
            yield SourceLocation(file.name), record
        else:
            problems.add(SourceLocation(file.name), f"[{number}]", f"is {type(record).__name__}", "write an object for each question")


def _question(
    record: Mapping[str, Any],
    form: _Form | None,
    outputs: Mapping[str, Any],
    where: tuple[SourceLocation, str],
    problems: Problems,
) -> _Question | None:
    place, path = where
    who = next((name for name in _LONG if name in record), None)
    if form is None and who is None:
        problems.add(place, path, f"has none of {', '.join(_LONG)}", "give LongLaMP's records, or LaMP's *_questions.json with its outputs")
        return None
    name, form = ("user_id" if "user_id" in record else "id", form) if form is not None else (str(who), _LONG[str(who)])
    person = identifier(record.get(name), place, f"{path}.{name}", problems)
    # LongLaMP numbers no questions.
    identity = identifier(record.get("id", digest(record.get("input"), length=12)), place, f"{path}.id", problems)
    text = words(record.get("input"), place, f"{path}.input", problems)
    profile = record.get("profile")
    if not isinstance(profile, list) or not profile:
        problems.add(place, f"{path}.profile", "is empty or no list", "give everybody entries to learn from, or leave the question out")
    gold = record.get("output", outputs.get(str(identity)))
    output = words_or_number(gold, place, f"{path}.output", problems)
    if person is None or identity is None or text is None or output is None or not isinstance(profile, list):
        return None
    if form is _MOVIES and any(isinstance(entry, dict) and "category" in entry for entry in profile):
        form = _NEWS  # the first version of LaMP_2
    if form.marker is not None and form.marker not in text:
        problems.add(place, f"{path}.input", f"does not hold {form.marker!r}", "give the question in the benchmark's own words")
        return None
    return _Question(person, identity, text, output, profile, form, place, path)


def _add(question: _Question, people: dict[str, _Draft], problems: Problems) -> None:
    draft = people.setdefault(question.person, _Draft(question.place, is_asked=question.form.is_asked))
    name = numbered(f"question/{question.id}", draft.questions)  # LongLaMP may ask the same twice
    draft.questions[name] = Dialogue(name, (Turn("user", question.text), Turn("assistant", question.output)))
    draft.place_by_dialogue[name] = question.place
    form, instruction = question.form, ""
    if form.marker is not None:
        instruction = question.text[: question.text.index(form.marker) + len(form.marker)]
    for number, entry in enumerate(question.profile):
        where = f"{question.where}.profile[{number}]"
        needed = (*re.findall(r"{(\w+)}", form.prompt), form.answer)
        if not isinstance(entry, dict) or any(entry.get(name) in (None, "") for name in needed):
            problems.add(question.place, where, f"lacks one of {', '.join(needed)}", "fill it in or remove the entry")
            continue
        prompt = words(instruction + form.prompt.format_map({name: entry[name] for name in needed}), question.place, where, problems)
        answer = words_or_number(entry[form.answer], question.place, f"{where}.{form.answer}", problems)
        if prompt is not None and answer is not None:
            turns = (Turn("user", prompt), Turn("assistant", answer))
            name = f"profile/{digest(turns, length=12)}"  # several questions of a person repeat most of the profile
            draft.profile[name] = Dialogue(name, turns)
            draft.place_by_dialogue.setdefault(name, question.place)


def _check_lone_questions(people: Mapping[str, _Draft], task: Task, problems: Problems) -> None:
    """Tell of all who have one question, to score, and a profile that answers none of its kind to choose by; for labels it is a problem."""
    lone = [name for name, draft in people.items() if len(draft.questions) == 1 and not draft.is_asked]
    if lone and task == "text":
        log.warning(
            "%d of %d people ask 1 question each, which is to score; what is chosen on val, and the gate, go by entries of their profiles, "
            "which answer something else: %r",
            len(lone),
            len(people),
            printable(next((entry.turns[0].text for name in lone for entry in people[name].profile.values()), "")),
        )
    elif lone:
        what = (
            f"{len(lone)} of {len(people)} ask 1 question each (first: {lone[0]!r}), which is to score; their profiles hold papers and "
            "answer no such question, so nothing is left to choose by"
        )
        fix = "use LaMP_2 to LaMP_7, whose profiles answer what is asked, or a file whose user_id gives people 2 questions or more"
        problems.add(people[lone[0]].place, "people", what, fix)


def _refuse_unlearnt_labels(people: Mapping[str, _Draft], problems: Problems) -> None:
    """Add a problem for labels that questions are answered with and no profile is; where the questions list all labels, with these."""
    learnt = {_answer(entry) for draft in people.values() for entry in draft.profile.values()}
    asked = [(draft.place_by_dialogue[name], question) for draft in people.values() for name, question in draft.questions.items()]
    unlearnt = sorted({_answer(question) for _, question in asked} - learnt)
    listed = {label.strip() for _, question in asked for found in _LISTED.findall(question.turns[0].text) for label in found.split(",")}
    if unlearnt and not set(unlearnt) - listed:
        answer = "answers a question and stands" if len(unlearnt) == 1 else "answer questions and stand"
        what = f"{', '.join(map(repr, unlearnt))} {answer} in no profile"
        given = json.dumps(sorted(listed), ensure_ascii=False, separators=(",", ":"))
        place = next(place for place, question in asked if _answer(question) in unlearnt)
        problems.add(place, "golds", what, f"take all labels that the questions list: --set 'data.labels={given}'")


def _answer(dialogue: Dialogue) -> str:
    return dialogue.turns[-1].text.strip()


def _split(name: str, draft: _Draft, settings: DataSettings) -> tuple[Dialogue, ...]:
    """Return a person's dialogues with their splits: profile entries for train, questions for val and test.

    A single question is test; val then comes from the profile, at most a quarter of it, if its entries answer what is asked.
    """

    def in_order(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
        return sorted(dialogues, key=lambda d: hashlib.sha256(f"{settings.split_seed}\x1f{name}\x1f{d.id}".encode()).hexdigest())

    def put(dialogues: Sequence[Dialogue], split: Split) -> list[Dialogue]:
        return [replace(dialogue, split=split) for dialogue in dialogues]

    questions, profile = in_order(tuple(draft.questions.values())), in_order(tuple(draft.profile.values()))
    if len(questions) > 1:
        n_val = min(len(questions) - 1, max(1, len(questions) * settings.val // (settings.val + settings.test)))
        return (*put(profile, "train"), *put(questions[:n_val], "val"), *put(questions[n_val:], "test"))
    n_val = max(1, min(settings.val, len(profile) // 4))
    return (*put(profile[n_val:], "train"), *put(profile[:n_val], "val"), *put(questions, "test"))
