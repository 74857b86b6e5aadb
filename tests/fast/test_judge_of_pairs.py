"""The metric `judge`: pairs in both orders, put to a real local server through MLflow's judge interface, and asked once."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clusterlora.config import resolve
from clusterlora.errors import BadData, BadSettings, ServiceDown
from clusterlora.evaluation.pairwise import CachedJudge, human_preferences, with_judge_scores
from clusterlora.method_settings import JudgeSettings
from clusterlora.ports.judge import AnswerPair, Preference
from clusterlora.ports.stores import Stores
from clusterlora.settings import Study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.pairwise import judged
from clusterlora.stages.prepare import prepare_study
from clusterlora.stores import mlflow_judge
from clusterlora.stores.mlflow_judge import MlflowJudge
from clusterlora.values import EvaluationRow
from tests.fixtures.stages import LOG, Notes, run


class Longest:
    """Prefers the longer answer, or with `position` always the first; counts what it is asked."""

    identity = "longest"

    def __init__(self, *, position: bool = False) -> None:
        self.position, self.asked = position, list[AnswerPair]()

    def prefer(self, pair: AnswerPair) -> Preference:
        self.asked.append(pair)
        if self.position:
            return "first"
        if "?" in pair.first + pair.second:
            return "abstain"
        difference = len(pair.first) - len(pair.second)
        return "tie" if not difference else "first" if difference > 0 else "second"


def row(method: str, item: str, text: str, seed: int = 0) -> EvaluationRow:
    return EvaluationRow(method, "ann", 0, item, f"ask {item}", "reference", text, {"nll": 1.0}, seed)


ROWS = [row("unified", str(i), "four") for i in range(5)] + [
    row("cluster", str(i), text) for i, text in enumerate(("longer", "one", "five", "four", "why?"))
]


def test_an_answer_scores_one_where_it_is_preferred_and_half_where_nothing_is(tmp_path: Path):
    judge = Longest()
    rows, quality = with_judge_scores(ROWS, "unified", CachedJudge(judge, tmp_path / "judge.jsonl"), [])
    assert [row.scores["judge"] for row in rows] == [0.5] * 5 + [1.0, 0.0, 0.5, 0.5, 0.5]
    assert all(row.scores["nll"] == 1.0 for row in rows)
    assert len(judge.asked) == 2 * 4, "equal answers are a tie that nobody is asked about"
    assert (quality.n_pairs, quality.n_consistent, quality.n_undecided, quality.n_ties) == (4, 3, 1, 2)
    assert "names no file" in quality.sentence("longest")


def test_a_preference_for_a_position_is_a_tie_and_no_consistency(tmp_path: Path):
    rows, quality = with_judge_scores(ROWS, "unified", CachedJudge(Longest(position=True), tmp_path / "judge.jsonl"), [])
    assert {row.scores["judge"] for row in rows} == {0.5}
    assert quality.n_consistent == 0
    assert " 0% (0–49) alike, 100% otherwise in the other order, 0% with an abstention" in quality.sentence("longest")


class Always:
    """Says one thing, whatever it is asked."""

    identity = "always"

    def __init__(self, says: Preference) -> None:
        self.says: Preference = says

    def prefer(self, pair: AnswerPair) -> Preference:  # noqa: ARG002
        return self.says


@pytest.mark.parametrize(
    ("says", "alike", "undecided", "agrees"), [("first", 0, 0, 0), ("abstain", 0, 4, 0), ("unusable", 0, 4, 0), ("tie", 4, 0, 2)]
)
def test_neither_abstentions_nor_a_preferred_position_are_consistent_or_agree_with_people(
    says: Preference, alike: int, undecided: int, agrees: int, tmp_path: Path
):
    human: list[tuple[AnswerPair, Preference]] = [(AnswerPair(prompt, "r", "x", "y"), "tie") for prompt in "pq"]
    judge = CachedJudge(Always(says), tmp_path / "judge.jsonl")
    rows, quality = with_judge_scores(ROWS, "unified", judge, human)
    assert {row.scores["judge"] for row in rows} == {0.5}
    assert (quality.n_pairs, quality.n_consistent, quality.n_undecided, quality.agreement) == (4, alike, undecided, agrees)
    assert quality.n_human_undecided == 2 - agrees
    assert ("8 of its 8 replies say no preference" in quality.sentence("always")) == (says == "unusable")
    assert (tmp_path / "judge.jsonl").exists() == (says != "unusable"), "an unusable reply is asked for again"


class Hesitant(Longest):
    """Prefers the longer answer where it comes first, and else says the other word."""

    def __init__(self, otherwise: Preference) -> None:
        super().__init__()
        self.otherwise: Preference = otherwise

    def prefer(self, pair: AnswerPair) -> Preference:
        return "first" if len(pair.first) > len(pair.second) else self.otherwise


@pytest.mark.parametrize(
    ("judge", "tells"),
    [
        (Hesitant("tie"), True),
        (Hesitant("abstain"), True),
        (Longest(), True),
        (Longest(position=True), False),
        (Always("tie"), False),
        (Always("abstain"), False),
    ],
    ids=["first or tie", "first or abstains", "longest", "position", "always tie", "always abstains"],
)
def test_a_judge_tells_something_if_it_prefers_answers_and_does_not_contradict_itself(
    judge: Hesitant | Longest | Always, tells: bool, tmp_path: Path
) -> None:
    answers = [row("unified", str(i), "four") for i in range(4)] + [
        row("cluster", str(i), text) for i, text in enumerate(("longer", "longest", "by far", "five"))
    ]
    rows, quality = with_judge_scores(answers, "unified", CachedJudge(judge, tmp_path / "judge.jsonl"), [])
    assert quality.tells == tells
    assert (max(row.scores["judge"] for row in rows) > 0.5) == tells


def test_a_judge_that_is_asked_nothing_keeps_its_ties(tmp_path: Path) -> None:
    rows, quality = with_judge_scores(ROWS[:5], "unified", CachedJudge(Longest(), tmp_path / "judge.jsonl"), [])
    assert {row.scores["judge"] for row in rows} == {0.5}
    assert quality.tells, "every answer is unified's"


def test_nothing_is_asked_twice_of_the_same_judge(tmp_path: Path):
    file, again, other = tmp_path / "judge.jsonl", Longest(), Longest()
    with_judge_scores(ROWS, "unified", CachedJudge(Longest(), file), [])
    file.write_text(file.read_text() + '5\n["a", "unusable"]\n["cut')
    rows, _ = with_judge_scores(ROWS, "unified", CachedJudge(again, file), [])
    assert not again.asked
    assert [row.scores["judge"] for row in rows[5:]] == [1.0, 0.0, 0.5, 0.5, 0.5]
    other.identity = "another"
    with_judge_scores(ROWS, "unified", CachedJudge(other, file), [])
    assert len(other.asked) == 8


@pytest.mark.whole
def test_a_judge_with_other_instructions_is_another_judge(monkeypatch: pytest.MonkeyPatch):
    before = MlflowJudge("http://127.0.0.1:1/v1", "m").identity
    monkeypatch.setattr(mlflow_judge, "_INSTRUCTIONS", mlflow_judge._INSTRUCTIONS + " Be kind.")
    assert MlflowJudge("http://127.0.0.1:1/v1", "m").identity != before


def test_every_training_seed_is_compared_with_unified_of_that_seed(tmp_path: Path):
    rows = [
        row("unified", "1", "four"),
        row("unified", "1", "seventy", 1),
        row("cluster", "1", "fives", 0),
        row("cluster", "1", "fives", 1),
    ]
    scored, _ = with_judge_scores(rows, "unified", CachedJudge(Longest(), tmp_path / "j"), [])
    assert [row.scores["judge"] for row in scored] == [0.5, 0.5, 1.0, 0.0]
    with pytest.raises(BadData, match="unified did not answer item '2' of 'ann'"):
        with_judge_scores([*rows, row("cluster", "2", "x")], "unified", CachedJudge(Longest(), tmp_path / "j"), [])


def test_agreement_with_people_is_of_both_orders(tmp_path: Path):
    file = tmp_path / "people.jsonl"
    said = [("longer", "four", "first"), ("longer", "four", "second"), ("five", "four", "tie"), ("one", "four", "second")]
    lines = [{"prompt": "p", "reference": "r", "first": a, "second": b, "preferred": p} for a, b, p in said]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, quality = with_judge_scores(ROWS, "unified", CachedJudge(Longest(), tmp_path / "j"), human_preferences(file))
    assert (quality.agreement, quality.n_human) == (3, 4)
    assert "It agrees with 75% (30–95) of 4 preferences of people; 0% it judges otherwise" in quality.sentence("longest")
    file.write_text(file.read_text() + '{"prompt": "p", "preferred": "best"}\n')
    with pytest.raises(BadData, match=r"people\.jsonl:5: preference: has not all of prompt, reference, first, second, preferred"):
        human_preferences(file)
    file.write_text(json.dumps({**lines[0], "second": "longer"}) + "\n")
    with pytest.raises(BadData, match="first and second are the same answer"):
        human_preferences(file)
    with pytest.raises(BadData, match="no such file"):
        human_preferences(tmp_path / "none")


def test_a_judge_without_an_address_is_refused_in_one_line_and_never_decides():
    metrics = ["embedding_similarity", "nll", "judge"]
    with pytest.raises(BadSettings) as caught:
        resolve(None, overrides={"evaluation.metrics": metrics})
    assert "judge.address is missing; --set judge.address=" in str(caught.value)
    assert "\n" not in str(caught.value)
    there = {"evaluation.metrics": metrics, "judge.address": "http://127.0.0.1:1/v1", "judge.model": "m"}
    assert resolve(None, overrides=there).judge.model == "m"
    for more, words in (
        ({"evaluation.headline": "judge"}, "evaluation.headline = 'judge': does not say"),
        ({"evaluation.selection_metric": "judge"}, "is known on test alone"),
        ({"evaluation.second_headline": "judge"}, "is known on test alone"),
        ({"methods": ["baseline", "per_persona"]}, "judge compares with unified"),
        *(
            ({"judge.address": address}, "is no address; write it as http")
            for address in ("localhost", "http://", "http://[::1", "http://a:x")
        ),
    ):
        with pytest.raises(BadSettings, match=words):
            resolve(None, overrides={**there, **more})


class Server(BaseHTTPRequestHandler):
    """Chat completions that prefer the longer of two answers."""

    asked: list[dict[str, Any]]
    says: str | None = None
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        user = body["messages"][-1]["content"]
        answers = json.JSONDecoder().raw_decode(user[user.index("outputs: ") + len("outputs: ") :])[0]
        result = "first" if len(answers["first"]) > len(answers["second"]) else "second"
        content = self.says if self.says is not None else json.dumps({"result": result, "rationale": "it is longer"})
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        reply["choices"] = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}]
        reply["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        out = json.dumps(reply).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Server]]]:
    """Yield the address of a real server and its handler, which remembers what was asked."""
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    handler = type("Handler", (Server,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/v1", handler
        listening.shutdown()
        thread.join()


@pytest.mark.whole
def test_a_local_server_is_asked_through_mlflow(server: tuple[str, type[Server]]):
    address, handler = server
    judge = MlflowJudge(address, "local-model")
    pair = AnswerPair("Make it cosy", "Warm light, Ana.", "Warm light.", "Done")
    assert (judge.prefer(pair), judge.prefer(pair.swapped)) == ("first", "second")
    asked = handler.asked[0]
    assert (asked["path"], asked["model"], asked["temperature"], asked["key"]) == (
        "/v1/chat/completions",
        "local-model",
        0.0,
        "Bearer a-key",
    )
    assert all(words in json.dumps(asked["messages"]) for words in ("Make it cosy", "Warm light, Ana.", "Done"))
    handler.status = 401
    with pytest.raises(ServiceDown, match=r"the judge local-model at http.* does not answer"):
        judge.prefer(pair)
    with pytest.raises(ServiceDown, match=r"does not answer \(.*refused\); mend that and compare again"):
        MlflowJudge("http://127.0.0.1:1/v1", "local-model").prefer(pair)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("reply", "preference"),
    [
        ('{"result": "First", "rationale": "r"}', "first"),
        ('{"result": " **SECOND.** ", "rationale": "r"}', "second"),
        ('{"result": "both", "rationale": "r"}', "unusable"),
        ('{"result": "", "rationale": "r"}', "unusable"),
        ('{"result": ["first"], "rationale": "r"}', "first"),
        ('{"rationale": "r"}', "unusable"),
        ('["first"]', "unusable"),
        ("Tie!", "tie"),
        ("no idea", "unusable"),
        ("", "unusable"),
    ],
)
def test_a_word_is_read_whatever_its_case_and_punctuation_and_another_one_is_no_failure(
    reply: str, preference: str, server: tuple[str, type[Server]]
):
    address, handler = server
    handler.says = reply
    assert MlflowJudge(address, "local-model").prefer(AnswerPair("p", "r", "a", "b")) == preference


def test_people_s_preferences_are_read_before_anything_else_of_a_study(seven: Study, stores: Stores, tmp_path: Path):
    with pytest.raises(BadData, match=r"judge\.preferences = .*: no such file"):
        prepare_study(judged_study(seven, "http://127.0.0.1:1/v1", preferences=str(tmp_path / "none")), stores, LOG)
    assert not list(stores.studies.studies())


def test_a_judge_that_nobody_answers_for_leaves_the_rows_as_they_are_and_says_so(seven: Study, stores: Stores):
    log = Notes()
    rows, sentence = judged(judged_study(seven, "http://127.0.0.1:1/v1"), ROWS, stores, log)
    assert rows == ROWS
    assert sentence is not None
    assert sentence.startswith(
        "Warning: these results are without the metric judge: the judge local at http://127.0.0.1:1/v1 does not answer"
    )
    assert log.notes == [sentence]


@pytest.mark.whole
def test_a_judge_that_prefers_a_position_tells_nothing_and_no_methods_are_called_equivalent_by_it(
    seven: Study, stores: Stores, server: tuple[str, type[Server]]
):
    address, handler = server
    handler.says = '{"result": "first", "rationale": "it comes first"}'
    rows, sentence = judged(judged_study(seven, address), ROWS, stores, LOG)
    assert rows == ROWS
    assert sentence is not None
    assert sentence.startswith("Warning: these results are without the metric judge, as it mostly tells nothing. The judge local at")
    assert " 0% (0–49) alike, 100% otherwise in the other order" in sentence


def judged_study(study: Study, address: str, preferences: str | None = None) -> Study:
    """Return the study with two methods and a judge."""
    return replace(
        study,
        name="judged",
        methods=("unified", "cluster"),
        evaluation=replace(study.evaluation, metrics=(*study.evaluation.metrics, "judge")),
        judge=JudgeSettings(address=address, model="local", preferences=preferences),
    )


@pytest.mark.whole
def test_a_study_tells_its_judge_beside_the_headline_and_asks_once(seven: Study, finished_stores: Stores, server: tuple[str, type[Server]]):
    address, handler = server
    study = judged_study(seven, address)
    log = Notes()
    prepare_study(study, finished_stores, log)
    assert [note for note in log.notes if address in note] == [
        f"the judge reads every test prompt, reference and answer: texts of people are sent to {address}"
    ]
    run(study, finished_stores)
    handler.status = 401
    comparison = compare_study(study.name, finished_stores, LOG)
    assert "judge" not in comparison.metrics
    for file in ("summary.md", "report.html"):
        assert "are without the metric judge: the judge local at" in (finished_stores.folder(study.name) / "results" / file).read_text()
    handler.status = 200
    handler.asked.clear()
    comparison = compare_study(study.name, finished_stores, LOG)
    assert comparison.headline == "embedding_similarity"
    assert "judge" in comparison.beside
    assert comparison.method("unified").means["judge"] == 0.5
    assert comparison.method("cluster").beside["judge"].mean == pytest.approx(comparison.method("cluster").means["judge"] - 0.5)
    n_asked = len(handler.asked)
    assert n_asked > 0
    for file in ("summary.md", "report.html"):
        assert "The judge local at" in (finished_stores.folder(study.name) / "results" / file).read_text(encoding="utf-8")
    compare_study(study.name, finished_stores, LOG)
    assert len(handler.asked) == n_asked, "a second comparison asks nothing"
