"""The metric `judge` of a study: every method's answers beside unified's, put to the judge at the study's address."""

from collections.abc import Sequence
from pathlib import Path

from clusterlora.durable import make_folder
from clusterlora.errors import BadData, ServiceDown
from clusterlora.evaluation.pairwise import CachedJudge, human_preferences, with_judge_scores
from clusterlora.planning.ladder import REFERENCE
from clusterlora.ports.judge import AnswerPair, Judge, Preference
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import Study
from clusterlora.values import EvaluationRow

JUDGE = "judge"


def leaves_the_machine(study: Study) -> str | None:
    """Return a sentence on the texts that the judge gets to read; None without a judge."""
    if JUDGE not in study.evaluation.metrics:
        return None
    return f"the judge reads every test prompt, reference and answer: texts of people are sent to {study.judge.address}"


def preferences_of_people(study: Study) -> list[tuple[AnswerPair, Preference]]:
    """Return the preferences of people that the study names for its judge.

    Raises:
        BadData: their file cannot be used.
    """
    if JUDGE not in study.evaluation.metrics or study.judge.preferences is None:
        return []
    return human_preferences(Path(study.judge.preferences))


def judged(study: Study, rows: Sequence[EvaluationRow], stores: Stores, log: RunLog) -> tuple[list[EvaluationRow], str | None]:
    """Return the rows with their score `judge`, and a sentence on what the judge is worth; the rows as they are where none is asked.

    So are they where the judge fails, or mostly tells nothing, and the sentence says why: it decides nothing, so nothing else waits for it.
    """
    if JUDGE not in study.evaluation.metrics:
        return list(rows), None
    judge = judge_of(study)
    folder = stores.folder(study.name)
    make_folder(folder)
    cached = CachedJudge(judge, folder / "judge.jsonl")
    try:
        scored, quality = with_judge_scores(rows, REFERENCE, cached, preferences_of_people(study))
    except (BadData, ServiceDown) as problem:
        sentence = f"Warning: these results are without the metric judge: {problem}."
        log.note(sentence)
        return list(rows), sentence
    sentence = quality.sentence(judge.identity)
    if not quality.tells:
        sentence = f"Warning: these results are without the metric judge, as it mostly tells nothing. {sentence}"
        scored = list(rows)
    log.note(f"{sentence} {cached.n_asked} questions were asked now, the others before")
    return scored, sentence


def judge_of(study: Study) -> Judge:
    """Return the judge at the study's address."""
    from clusterlora.stores.mlflow_judge import MlflowJudge  # imported late: only a study with a judge needs it

    return MlflowJudge(str(study.judge.address), str(study.judge.model))
