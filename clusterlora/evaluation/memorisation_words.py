"""What adapters have memorised, as sentences and tables."""

from collections.abc import Iterator

from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.memorisation import AdapterMemory, Memorisation

MEMBERS_HEADER = (
    "adapter",
    "people",
    "train",
    "held out",
    "AUC",
    "by chance up to",
    "true positives",
    "by chance up to",
    "at false positives",
)
MEMBERS_NUMERIC = (False, *(True for _ in MEMBERS_HEADER[1:]))
COPIES_HEADER = ("adapter", "prompts", "answers", "longest", "of learnt", "of never learnt", "difference", "by chance up to", "shown from")
COPIES_NUMERIC = (False, False, *(True for _ in COPIES_HEADER[2:]))
CANARIES_HEADER = ("adapter", "canaries", "mean exposure", "largest", "at chance", "at most", "p")
CANARIES_NUMERIC = (False, *(True for _ in CANARIES_HEADER[1:]))

MEMBERS_NOTE = (
    "Whoever has the weights asks of a dialogue whether it was trained on, by how much lower its loss is than the base model's. AUC 0.5 is "
    "chance; it compares dialogues of one person. True positives are the train dialogues recognised where so few test ones are taken for "
    "them. What is more than comes by chance, in all but 1.25% of studies, is found."
)
CANARIES_NOTE = (
    "Exposure in bits (Carlini et al. 2019): how early the planted code comes among others drawn like it; p is that of such ranks if none "
    "was ever seen."
)


def copies_note(memory: Memorisation) -> str:
    """Return what the table of copies counts."""
    return (
        f"An answer repeats where it has {memory.n_words} words in a row of another; longest is in words. To test prompts: of train "
        "answers that were learnt; never learnt are answers of test dialogues that were not asked. To train prompts: of the answer "
        "trained on; never learnt is the same of test prompts. A difference is found where it is more than comes by chance. Where so "
        "many answers as stand under shown from had repeated what was learnt, and no other, it would have been found."
    )


def sentence(memory: Memorisation) -> str:
    """Return what is more than chance, adapter by adapter, what could have been shown, and what was not measured."""
    found = [f"{one.name}: {', '.join(one.found)}" for one in memory.adapters if one.found]
    shown, unmeasured = list(_shown(memory)), list(_unmeasured(memory))
    if found:
        said = [f"Memorised more than chance: {'; '.join(found)}."]
    elif shown or any(one.exposure for one in memory.adapters):
        said = ["Nothing is shown to be memorised more than chance would have it."]
    else:
        said = ["What is memorised could not be measured."]
    if shown:
        said.append(f"Shown would have been, at best: {', '.join(shown)}; what is less may be there.")
    if not memory.adapters:
        said.append("The study has no unified and no cluster's adapter, and its champion answers with none.")
    if unmeasured:
        said.append(f"Not measured: {'; '.join(unmeasured)}.")
    if memory.canaries_in is None:
        said.append("Exposure is not measured, as no canaries were planted.")
    else:
        said.append(f"Canaries are those of study {memory.canaries_in}.")
    return " ".join(said)


def _shown(memory: Memorisation) -> Iterator[str]:
    """Yield the least that any adapter would have been shown to have memorised."""
    told = [one.membership for one in memory.adapters if one.membership is not None and one.membership.is_measurable]
    if told:
        yield f"AUC above {min(one.auc_by_chance for one in told):.3f}"
        yield f"true positives above {min(one.true_positives_by_chance for one in told):.1%}"
    for prompts in ("test", "train"):
        every = [one for adapter in memory.adapters for one in adapter.copies if one.prompts == prompts and one.is_measurable]
        if every:
            best = min(every, key=lambda one: (one.least or 0) / one.n_answers)
            yield f"{best.least} of {best.n_answers} answers to {prompts} prompts that repeat"


def _unmeasured(memory: Memorisation) -> Iterator[str]:
    """Yield what could not be measured, why, and of which adapters."""
    names: dict[str, list[str]] = {}
    for one in memory.adapters:
        if one.exposure is not None and one.membership is None:
            continue
        for reason in _reasons(one, memory.n_words):
            names.setdefault(reason, []).append(one.name)
    yield from (f"{reason}: {', '.join(of)}" for reason, of in names.items())


def _reasons(one: AdapterMemory, n_words: int) -> Iterator[str]:
    if one.membership is None:
        yield "membership, as nobody has train and test dialogues"
    elif not one.membership.is_measurable:
        yield "membership, as there are too few train and test dialogues to rule out chance"
    if not one.copies:
        yield "copies, as answers are labels or nobody is answered"
    for counts in one.copies:
        if counts.n_answers == 0:
            yield f"copies to {counts.prompts} prompts, as too few dialogues have answers of {n_words} words (--words)"
        elif not counts.is_measurable and not counts.is_found:
            least = f"{counts.least} answers that repeat" if counts.least else "more test dialogues"
            yield f"copies to {counts.prompts} prompts, as {counts.n_answers} answers are too few: it takes {least}"


def member_rows(memory: Memorisation) -> Iterator[tuple[str, ...]]:
    """Yield a row per adapter whose membership was measured."""
    for one in memory.adapters:
        if (told := one.membership) is not None:
            yield (
                one.name,
                str(told.n_people),
                str(told.n_trained_on),
                str(told.n_held_out),
                f"{told.auc:.3f}",
                f"{told.auc_by_chance:.3f}",
                f"{told.true_positive_rate:.1%}",
                f"{told.true_positives_by_chance:.1%}",
                f"{told.false_positive_rate:.1%}",
            )


def copies_rows(memory: Memorisation) -> Iterator[tuple[str, ...]]:
    """Yield a row per adapter and kind of prompts."""
    for one in memory.adapters:
        for counts in (counts for counts in one.copies if counts.n_answers):
            yield (
                one.name,
                counts.prompts,
                str(counts.n_answers),
                str(counts.longest) if counts.longest else "-",
                f"{counts.learnt:.1%}",
                f"{counts.never_learnt:.1%}",
                f"{100 * (counts.learnt - counts.never_learnt):+.1f}",
                f"{100 * counts.by_chance:+.1f}",
                "-" if counts.least is None else str(counts.least),
            )


def canary_rows(memory: Memorisation) -> Iterator[tuple[str, ...]]:
    """Yield a row per adapter that has canaries to remember."""
    for one in memory.adapters:
        if (told := one.exposure) is not None:
            yield (
                one.name,
                str(told.n_canaries),
                f"{told.mean:.2f}",
                f"{told.largest:.2f}",
                f"{told.at_chance:.2f}",
                f"{told.most:.2f}",
                "<0.001" if told.p < 0.001 else f"{told.p:.3f}",
            )


def tables(memory: Memorisation) -> Iterator[tuple[str, str, tuple[str, ...], list[tuple[str, ...]], tuple[bool, ...]]]:
    """Yield (title, note, header, rows, which columns are numbers) of every table that has rows."""
    every = (
        ("membership", MEMBERS_NOTE, MEMBERS_HEADER, member_rows, MEMBERS_NUMERIC),
        ("copies", copies_note(memory), COPIES_HEADER, copies_rows, COPIES_NUMERIC),
        ("canaries", CANARIES_NOTE, CANARIES_HEADER, canary_rows, CANARIES_NUMERIC),
    )
    for title, note, header, rows_of, numeric in every:
        if rows := list(rows_of(memory)):
            yield title, note, header, rows, numeric


def markdown(memory: Memorisation) -> str:
    """Return the section of summary.md, which also stands by itself in privacy.md."""
    parts = (f"{note}\n\n{markdown_table(header, rows, right=numeric)}" for _, note, header, rows, numeric in tables(memory))
    return f"\n## Privacy\n\n**{sentence(memory)}**\n\n" + "\n".join(parts)
