"""From settings to a split data set: read, check, limit, split. Either everything can be used or every problem is told at once."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clusterlora.data import SOURCES
from clusterlora.data.canaries import with_canaries
from clusterlora.data.conversations import beginnings, n_overlapping
from clusterlora.data.labels import check_labels, plain_labels
from clusterlora.data.leaks import counted_leaks, find_leaks
from clusterlora.data.legacy_import import read_splits
from clusterlora.data.permutation import check_exchange, permuted
from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.data.prompt_fit import PromptFit
from clusterlora.data.similar_ids import described, similar_ids, visible
from clusterlora.data.source import SourceData
from clusterlora.data.split import BEYOND, SPLITS, Refusal, SplitPersona, SplitPlan, split_persona
from clusterlora.data.twins import nameless_text, own_words
from clusterlora.errors import BadData, counted, path_problem, printable
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Persona, Split

log = logging.getLogger(__name__)

_MIN_PERSONAS = 2
_MOST_NAMED = 3


def load(settings: DataSettings, fit: PromptFit | None = None, left: Callable[[str], bool] | None = None) -> Dataset:
    """Return the personas of a study, each with its train, val and test dialogues.

    Args:
        fit: what the dialogues are fitted to; without it they stay as they are in the source.
        left: whether a person was forgotten: their dialogues are not exchanged with others'.

    Raises:
        BadData: every problem, one per line, with file, line, field and fix.
        BadSettings: the source cannot do what the settings ask.
        UnknownName: there is no such source.
    """
    problems = Problems()
    reading = limited(_read(settings, problems), settings, problems)
    if alike := similar_ids(persona.id for persona in reading.dataset.personas):
        shown = described(alike[:_MOST_NAMED])
        log.warning(
            "%s of people have ids that look alike (%s); if they are one person each, write the ids alike",
            counted(len(alike), "group"),
            shown,
        )
    if reading.number_and_text:
        shown = described([reading.number_and_text[:_MOST_NAMED]])
        log.warning("ids that stand as a number and as a text are read as one person each: %s", shown)
    if reading.unread:
        log.warning("not read of the rows: %s", unread_words(reading.unread))
    if fit is not None:
        reading = fitted(reading, fit, settings, problems)
    if settings.permute_seed is not None:
        # Afterwards a person's dialogues are anybody's.
        reading = permuted(
            replace(reading, dataset=without_people(reading.dataset, left)), settings.permute_seed, labelled=settings.task != "text"
        )
    dataset = split(reading, settings, problems).dataset
    if settings.canaries is not None and dataset.personas:
        dataset = with_canaries(dataset, settings.canaries)
    check_labels(settings, dataset.personas, problems)
    problems.raise_any()
    if settings.permute_seed is not None:
        check_exchange(dataset, settings.permute_seed)
    return dataset


def _warn_of_similar_dialogues(reading: SourceData) -> None:
    """Name ids of a person's conversations that look alike, of which two halves could land in train and in test, or that were joined."""
    if reading.dialogues_number_and_text:
        some = reading.dialogues_number_and_text[:_MOST_NAMED]
        shown = "; ".join(f"{visible(dialogue_id)} of {visible(persona_id)}" for persona_id, dialogue_id in some)
        log.warning("dialogue ids that stand as a number and as a text are read as one dialogue each: %s", shown)
    ids: dict[str, dict[str, None]] = {}
    for (persona_id, _), conversation in reading.conversation_by_dialogue.items():
        ids.setdefault(persona_id, {})[conversation] = None
    alike = [(persona_id, group) for persona_id, of_person in ids.items() for group in similar_ids(of_person)]
    if alike:
        shown = "; ".join(f"{described([group])} of {visible(persona_id)}" for persona_id, group in alike[:_MOST_NAMED])
        log.warning(
            "%s of a person's dialogue ids look alike (%s); if they are one dialogue each, write the ids alike",
            counted(len(alike), "group"),
            shown,
        )


def unread_words(names: Sequence[str], most: int = _MOST_NAMED) -> str:
    """Return the names of columns and fields that nothing reads, and what helps."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    shown = ", ".join(printable(name) or "a column without a name" for name in names[:most])
    return f"{shown}{more}; data.columns maps a column to one of ours"


def without_people(dataset: Dataset, left: Callable[[str], bool] | None) -> Dataset:
    """Return the data without those who were forgotten, and say how many they are."""
    staying = tuple(persona for persona in dataset.personas if left is None or not left(persona.id))
    if n_left := len(dataset.personas) - len(staying):
        log.warning("%s, forgotten here by `clusterlora persona forget`, left out: the data still have them", counted(n_left, "persona"))
    return Dataset(staying)


def read(settings: DataSettings) -> SourceData:
    """Return the dialogues as they are in the source, for a look at data that may not be fit to train on.

    Raises:
        BadData: every problem of the input itself, one per line, with file, line, field and fix.
    """
    problems = Problems()
    reading = _read(settings, problems)
    problems.raise_any()
    return reading


def _read(settings: DataSettings, problems: Problems) -> SourceData:
    """Return what the source holds, whole conversations where rows repeat the history; with a file of splits, only what that file lists."""
    try:
        reading = SOURCES[settings.source](settings, problems)
    except OSError as error:
        if (problem := path_problem(error)) is None:
            raise
        raise BadData(problem) from error
    _refuse_repeated_names(reading, problems)
    if problems.count:
        return reading
    _warn_of_similar_dialogues(reading)
    if settings.task != "text":
        reading = replace(reading, dataset=Dataset(plain_labels(reading.dataset.personas, settings.task)))
    if settings.splits is None:
        return _whole_conversations(reading)
    personas = reading.dataset.personas
    splits = read_splits(Path(settings.splits), {persona.id: [dialogue.id for dialogue in persona.dialogues] for persona in personas})
    listed = tuple(
        replace(p, dialogues=tuple(replace(d, split=splits[p.id][d.id]) for d in p.dialogues if d.id in splits[p.id]))
        for p in personas
        if p.id in splits
    )
    n_dialogues = sum(len(persona.dialogues) for persona in personas)
    if (n_listed := sum(len(persona.dialogues) for persona in listed)) < n_dialogues:
        log.warning("%s lists %d of %d dialogues, of %d personas; others are left out", settings.splits, n_listed, n_dialogues, len(listed))
    return reading.keep(listed, "not in the file of splits")


def _refuse_repeated_names(reading: SourceData, problems: Problems) -> None:
    """Add a problem for every person, and every dialogue of a person, that a source gives the name of another: answers are kept by them."""
    for name, n in Counter(persona.id for persona in reading.dataset.personas).items():
        if n > 1:
            problems.add(reading.location(name), f"persona {name!r}", f"stands {n} times", "give everybody an id of their own")
    for persona in reading.dataset.personas:
        for name, n in Counter(dialogue.id for dialogue in persona.dialogues).items():
            if n > 1:
                place, what = reading.location(persona.id, name), f"stands {n} times"
                problems.add(place, f"persona {persona.id!r}, dialogue {name!r}", what, "give each of a person's dialogues its own id")


def _whole_conversations(reading: SourceData) -> SourceData:
    """Return the data without dialogues that are the beginning of another."""
    personas = reading.dataset.personas
    left_out = {persona.id: beginnings(persona.dialogues) for persona in personas}
    n_left_out = sum(map(len, left_out.values()))
    if not n_left_out:
        return reading
    whole = tuple(replace(p, dialogues=tuple(d for i, d in enumerate(p.dialogues) if i not in left_out[p.id])) for p in personas)
    n_dialogues = sum(len(persona.dialogues) for persona in personas)
    log.warning(
        "%d of %d dialogues are the beginning of another, which repeats the history so far: the %d whole conversations are used",
        n_left_out,
        n_dialogues,
        n_dialogues - n_left_out,
    )
    return replace(reading.keep(whole, "the beginning of a longer dialogue, which repeats it"), n_beginnings=n_left_out)


def split(reading: SourceData, settings: DataSettings, problems: Problems) -> SourceData:
    """Return the data with splits; people who cannot be split are left out, and are problems unless the settings skip them."""
    dataset = reading.dataset
    counts: dict[Split, int] = {"train": settings.train, "val": settings.val, "test": settings.test}
    labelled = settings.task != "text"
    # Many people label the same things: what somebody else said of one is no leak.
    shared = (frozenset[str](), frozenset[str]()) if labelled else _shared_texts(dataset)
    plan = SplitPlan(counts, settings.split_seed, *shared, use_all=settings.dialogues == "all", labelled=labelled)
    n_repeating, done = 0, list[SplitPersona]()
    # One person after the other: what words a text has is remembered for some thousand texts.
    for persona in dataset.personas:
        done.append(split_persona(persona, plan, _conversations(reading, persona)))
        n_repeating += n_overlapping(persona.dialogues, labelled=labelled, quoted=not done[-1].lists_divided)
    if n_repeating:
        log.warning(
            "%d of %d dialogues repeat turns of another of their person, in messages, prompt or system text: they are one conversation",
            n_repeating,
            dataset.n_dialogues,
        )
    refused = {result.persona.id: result.refusal for result in done if result.refusal}
    _refuse(refused, reading, settings, problems)
    kept = [result.persona for result in done if not result.refusal]
    reading = replace(reading, uneven=_warn(done, dataset, plan))
    splittable = (persona for persona, result in zip(dataset.personas, done, strict=True) if not result.refusal)
    reading = reading.keep(splittable, "of people who cannot be split")
    reading = reading.keep(kept, "of conversations that no split has room for", {BEYOND: sum(result.n_beyond for result in done)})
    if plan.shared or any(dialogue.split for persona in dataset.personas for dialogue in persona.dialogues):
        kept = _without_leaks(kept, reading, plan, settings, problems)
    if len(kept) < min(_MIN_PERSONAS, len(dataset.personas)) and not problems.count:
        what = f"{len(kept)} left of {len(dataset.personas)}, {_MIN_PERSONAS} needed"
        problems.add(SourceLocation(settings.path or settings.source), "personas", what, "give people at least 3 different dialogues each")
    for sentence, (persona_id, dialogue_id) in counted_leaks(kept, labelled=labelled):
        log.warning("%s First: %s of %s.", sentence, printable(dialogue_id), printable(persona_id))
    return reading.keep(kept, "in train or val, and said again in a later split")


def limited(reading: SourceData, settings: DataSettings, problems: Problems) -> SourceData:
    """Return the first `settings.personas` personas, or all where there are fewer; fewer than two are a problem."""
    personas = reading.dataset.personas
    if len(personas) < _MIN_PERSONAS and not problems.count:
        what = f"{len(personas)} in the data, {_MIN_PERSONAS} needed"
        problems.add(SourceLocation(settings.path or settings.source), "personas", what, "add personas")
    elif settings.personas is not None and len(personas) < settings.personas:
        log.warning("%s in the data, fewer than data.personas = %d: all are used", counted(len(personas), "persona"), settings.personas)
    return reading.keep(personas[: settings.personas], "of people beyond data.personas")


def fitted(reading: SourceData, fit: PromptFit, settings: DataSettings, problems: Problems) -> SourceData:
    """Return the dialogues as a base model can be asked them. Those that it cannot be are problems, or left out and counted."""
    personas: list[Persona] = []
    left_out: list[str] = []
    skip = settings.on_problem == "skip"
    for persona, dialogues in zip(reading.dataset.personas, fit.fit(reading.dataset.personas), strict=True):
        personas.append(replace(persona, dialogues=tuple(one.dialogue for one in dialogues if not (skip and one.problem))))
        for one in dialogues:
            if one.problem and skip:
                place = reading.location(persona.id, one.dialogue.id)
                left_out.append(f"dialogue {printable(one.dialogue.id)} of {printable(persona.id)}, {place}: {one.problem}")
            elif one.problem:
                place, field = reading.location(persona.id, one.dialogue.id), f"persona {persona.id!r}, dialogue {one.dialogue.id!r}"
                problems.add(place, field, one.problem, "change it, or leave such dialogues out with data.on_problem=skip")
    if left_out:
        log.warning("%d of %d dialogues left out (first: %s)", len(left_out), fit.n_dialogues, left_out[0])
    return reading.keep(personas, "the base model cannot be asked them")


def _shared_texts(dataset: Dataset) -> tuple[frozenset[str], frozenset[str]]:
    """Return the texts that several personas share but for names, and each one's own words, which are blank in these texts."""
    own = own_words(dataset.personas)
    counts = Counter(text for persona in dataset.personas for text in {nameless_text(dialogue, own) for dialogue in persona.dialogues})
    return frozenset(text for text, n_personas in counts.items() if n_personas > 1), own


def _conversations(reading: SourceData, persona: Persona) -> dict[str, str]:
    conversations = reading.conversation_by_dialogue
    return {d.id: conversations[persona.id, d.id] for d in persona.dialogues if (persona.id, d.id) in conversations}


def _refuse(refused: Mapping[str, Refusal], reading: SourceData, settings: DataSettings, problems: Problems) -> None:
    """Add a problem for everybody who cannot be split, or say how many are left out."""
    if settings.on_problem == "refuse":
        for persona_id, refusal in refused.items():
            fix = f"{refusal.fix}, or leave such people out with data.on_problem=skip"
            problems.add(reading.location(persona_id), f"persona {persona_id!r}", refusal.what, fix)
    elif refused:
        first, refusal = next(iter(refused.items()))
        who = counted(len(refused), "persona")
        log.warning("%s of %d left out (first: %s %s)", who, len(reading.dataset.personas), printable(first), refusal.what)


def _without_leaks(
    personas: list[Persona], reading: SourceData, plan: SplitPlan, settings: DataSettings, problems: Problems
) -> list[Persona]:
    """Return the personas without the train and val dialogues that a later split repeats, as far as they keep some in every split.

    Our own splits keep a persona's duplicates together; splits given by the input, and texts that several personas share, may leak.
    """
    leaking = find_leaks(personas, plan.own_words, labelled=plan.labelled)
    if not leaking:
        return personas
    log.warning("%d dialogues left out of train or val: a split that is scored holds the same words", len(leaking))
    kept = [replace(p, dialogues=tuple(d for d in p.dialogues if (p.id, d.id) not in leaking)) for p in personas]
    emptied = {p.id: names for p in kept if (names := [name for name in SPLITS if not p.of_split(name)])}
    refused = {p: Refusal(f"has all its {' and '.join(names)} dialogues in a later split too") for p, names in emptied.items()}
    _refuse(refused, reading, settings, problems)
    return [persona for persona in kept if persona.id not in emptied]


def _warn(done: Sequence[SplitPersona], dataset: Dataset, plan: SplitPlan) -> tuple[str, ...]:
    """Log who is split otherwise than asked: with fewer dialogues, in other shares, or within conversations. Return the second."""
    n_by_id = {persona.id: len(persona.dialogues) for persona in dataset.personas}
    split = [result for result in done if not result.refusal]
    asked = "/".join(map(str, plan.counts.values()))
    short = [r.persona for r in split if r.has_shares and not plan.use_all and n_by_id[r.persona.id] < sum(plan.counts.values())]

    def gets(persona: Persona) -> str:
        return f"{printable(persona.id)} gets {'/'.join(str(len(persona.of_split(name))) for name in SPLITS)} of {n_by_id[persona.id]}"

    if short:
        log.warning("%d of %d personas have fewer dialogues than %s (first: %s)", len(short), len(split), asked, gets(short[0]))
    uneven = tuple(gets(result.persona) for result in split if not result.has_shares)
    if uneven:
        log.warning("%d of %d personas get other shares than %s (first: %s)", len(uneven), len(split), asked, uneven[0])
    cut = [result.persona.id for result in done if result.by_row]
    if cut:
        log.warning(
            "%d of %d personas have fewer than 3 conversations, which are split row by row (first: %s)", len(cut), len(split), cut[0]
        )
    return uneven
