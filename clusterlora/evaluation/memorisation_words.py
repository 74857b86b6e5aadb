"""What adapters have memorised, as sentences and tables."""

from collections.abc import Iterator

from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.memorisation import Memorisation

MEMBERS_HEADER = ("adapter", "people", "train", "held out", "AUC", "95% interval", "true positives", "at false positives")
MEMBERS_NUMERIC = (False, *(True for _ in MEMBERS_HEADER[1:]))
COPIES_HEADER = ("adapter", "prompts", "answers", "repeat", "longest", "of learnt", "of never learnt", "difference", "of other people")
COPIES_NUMERIC = (False, False, *(True for _ in COPIES_HEADER[2:]))
CANARIES_HEADER = ("adapter", "canaries", "mean exposure", "largest", "at chance", "at most", "p")
CANARIES_NUMERIC = (False, *(True for _ in CANARIES_HEADER[1:]))

MEMBERS_NOTE = (
    "Whoever has the weights asks of a dialogue whether it was trained on, by how much lower its loss is than the base model's. AUC 0.5 is "
    "chance. True positives are the train dialogues recognised where so few held-out ones of the same people are taken for them."
)
CANARIES_NOTE = (
    "Exposure in bits (Carlini et al. 2019): how early the planted code comes among others drawn like it; p is that of such ranks if none "
    "was ever seen."
)


def copies_note(memory: Memorisation) -> str:
    """Return what the table of copies counts."""
    return (
        f"An answer repeats where it has {memory.n_words} words in a row of a train answer; longest is in words. To test prompts: of all "
        "that was learnt; then of as many words that were learnt, of the same people's held-out answers, and of other people's. To train "
        "prompts: of the answer trained on; never learnt is the same of test prompts. The difference is of learnt and never learnt, with "
        "its 95% interval."
    )


def sentence(memory: Memorisation) -> str:
    """Return what is more than chance, adapter by adapter, and what was not measured."""
    found = [f"{one.name}: {', '.join(one.found)}" for one in memory.adapters if one.found]
    said = (
        f"Memorised more than chance: {'; '.join(found)}." if found else "Nothing is shown to be memorised more than chance would have it."
    )
    if memory.canaries_in is None:
        return f"{said} Exposure is not measured, as no canaries were planted."
    return f"{said} Canaries are those of study {memory.canaries_in}."


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
                f"{told.auc_low:.3f} to {told.auc_high:.3f}",
                f"{told.true_positive_rate:.1%} ({told.true_positive_low:.1%} to {told.true_positive_high:.1%})",
                f"{told.false_positive_rate:.1%}",
            )


def copies_rows(memory: Memorisation) -> Iterator[tuple[str, ...]]:
    """Yield a row per adapter and kind of prompts."""
    for one in memory.adapters:
        for counts in one.copies:
            yield (
                one.name,
                counts.prompts,
                str(counts.n_answers),
                f"{counts.rate:.1%}",
                str(counts.longest),
                f"{counts.learnt:.1%}",
                f"{counts.never_learnt:.1%}",
                f"{100 * (counts.learnt - counts.never_learnt):+.1f} ({100 * counts.low:+.1f} to {100 * counts.high:+.1f})",
                "-" if counts.others is None else f"{counts.others:.1%}",
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
