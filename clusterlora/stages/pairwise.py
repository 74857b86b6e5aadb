"""The metric `judge` of a study: every method's answers beside unified's, put to the judge at the study's address."""

from collections.abc import Sequence
from pathlib import Path

from clusterlora.durable import make_folder
from clusterlora.evaluation.pairwise import CachedJudge, human_preferences, with_judge_scores
from clusterlora.planning.ladder import REFERENCE
from clusterlora.ports.judge import Judge
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


def judged(study: Study, rows: Sequence[EvaluationRow], stores: Stores, log: RunLog) -> tuple[list[EvaluationRow], str | None]:
    """Return the rows with their score `judge`, and a sentence on what the judge is worth; the rows as they are where none is asked.

    Raises:
        BadData: the file of people's preferences cannot be used.
        ServiceDown: the judge gives no usable answer.
    """
    if JUDGE not in study.evaluation.metrics:
        return list(rows), None
    judge = judge_of(study)
    human = human_preferences(Path(study.judge.preferences)) if study.judge.preferences else []
    folder = stores.folder(study.name)
    make_folder(folder)
    cached = CachedJudge(judge, folder / "judge.jsonl")
    scored, quality = with_judge_scores(rows, REFERENCE, cached, human)
    sentence = quality.sentence(judge.identity)
    log.note(f"{sentence} {cached.n_asked} questions were asked now, the others before")
    return scored, sentence


def judge_of(study: Study) -> Judge:
    """Return the judge at the study's address."""
    from clusterlora.stores.mlflow_judge import MlflowJudge  # imported late: only a study with a judge needs it

    return MlflowJudge(str(study.judge.address), str(study.judge.model))
