"""What is done in parts, so that thousands of people need little memory, gives what it gives at once."""

from dataclasses import replace
from typing import Any

import pytest

from clusterlora.chat import tokens
from clusterlora.chat.tokens import Piece, TextEncoder
from clusterlora.data import lengths, prompt_fit
from clusterlora.data.lengths import example_lengths
from clusterlora.data.load import load
from clusterlora.evaluation import answer as answering
from clusterlora.evaluation.answer import Answerer
from clusterlora.models.base import base_folder
from clusterlora.models.loading import load_tokenizer
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import DataSettings, Study, SyntheticSettings, prepared
from clusterlora.stages import answer_saver
from clusterlora.stages import evaluate as evaluating
from clusterlora.stages.base_checks import fit_of
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.prepare import prepare_study
from tests.fixtures.stages import run

TEXTS = [(Piece(f"{word}, please"),) for word in ("light", "lamp", "heating", "music", "light", "door")]


def test_a_text_encoder_remembers_the_last_texts_and_gives_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(base_folder("homelm"))
    at_once = TextEncoder(tokenizer).encode(TEXTS)
    assert at_once == [tuple(tokenizer(text[0].text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    monkeypatch.setattr(tokens, "_AT_ONCE", 2)
    monkeypatch.setattr(tokens, "_MOST_REMEMBERED", 2 * len(at_once[0]))
    encoder = TextEncoder(tokenizer)
    assert encoder.encode(TEXTS) == encoder.encode(TEXTS) == at_once
    assert [encoder.encode([text])[0] for text in TEXTS] == at_once
    remembered = encoder._ids_by_text
    assert TEXTS[-1][0].text in remembered
    assert sum(map(len, remembered.values())) <= 2 * len(at_once[0])


def test_a_text_encoder_that_shall_remember_nothing_does_not() -> None:
    encoder = TextEncoder(load_tokenizer(base_folder("homelm")), remember=False)
    assert encoder.encode(TEXTS) == encoder.encode(TEXTS)
    assert encoder._ids_by_text == {}


@pytest.mark.parametrize("n_people", [1, 2, 3])
def test_dialogues_are_fitted_and_measured_a_few_people_at_a_time(n_people: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataSettings(train=2, val=1, test=1, synthetic=SyntheticSettings(cluster_sizes=(3, 2), dialogues=4))
    # So short that some dialogues lose turns.
    study = prepared(Study(name="parts", data=data), "float32")
    study = replace(study, model=replace(study.model, base="homelm", max_length=96))
    tokenizer, personas = load_tokenizer(base_folder("homelm")), load(data).personas
    fit = fit_of(study, tokenizer)
    whole = fit.fit(personas), (fit.n_dialogues, fit.n_losing_turns, fit.n_unfit), example_lengths(personas, tokenizer, study.model, data)
    assert fit.n_losing_turns + fit.n_unfit > 0
    monkeypatch.setattr(prompt_fit, "_PEOPLE_AT_ONCE", n_people)
    monkeypatch.setattr(lengths, "_PEOPLE_AT_ONCE", n_people)
    fit = fit_of(study, tokenizer)
    parts = fit.fit(personas), (fit.n_dialogues, fit.n_losing_turns, fit.n_unfit), example_lengths(personas, tokenizer, study.model, data)
    assert parts == whole


@pytest.mark.whole
def test_answers_that_were_given_before_a_process_was_killed_are_not_asked_for_again(
    seven: Study, finished_stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, study = finished_stores, replace(seven, name="killed")
    prepare_study(study, stores, SilentLog())
    cluster_study(study.name, stores, SilentLog())

    class DiesWithTheSixth(SilentLog):
        n_answers = 0

        def advance(self, units: int = 1, **_facts: float) -> None:
            self.n_answers += units
            if self.n_answers == 6:
                raise KeyboardInterrupt

    monkeypatch.setattr(answering, "ANSWERS_PER_BATCH", 2)
    monkeypatch.setattr(answer_saver, "_SAVE_SECONDS", -1.0)
    request = EvaluationRequest(study_name=study.name, part="baseline")
    with pytest.raises(KeyboardInterrupt):
        evaluate(request, stores, DiesWithTheSixth())
    before = {(a.persona_id, a.item_id): a for a in stores.studies.answers(study.name)}
    assert len(before) == 6
    n_asked = evaluate(request, stores, SilentLog())
    after = {(a.persona_id, a.item_id): a for a in stores.studies.answers(study.name)}
    assert len(after) == n_asked + 6
    assert before.items() <= after.items()


@pytest.mark.whole
def test_every_answer_is_asked_for_once_however_few_are_asked_together(
    seven: Study, finished_stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, study, sizes = finished_stores, replace(seven, name="parts"), list[tuple[int, int]]()
    answer = Answerer.answer

    def counted(self: Answerer, requests: Any, weights: Any, **options: Any) -> Any:
        sizes.append((len(requests), len(weights)))
        return answer(self, requests, weights, **options)

    monkeypatch.setattr(Answerer, "answer", counted)
    monkeypatch.setattr(evaluating, "_REQUESTS_AT_ONCE", 5)
    monkeypatch.setattr(evaluating, "_COMPOSITIONS_AT_ONCE", 2)
    run(study, stores)
    of_seven, of_parts = (
        {(a.composition_key, a.persona_id, a.item_id): a for a in stores.studies.answers(name)} for name in (seven.name, "parts")
    )
    assert of_parts.keys() == of_seven.keys()
    assert sum(n for n, _ in sizes) == len(of_parts)
    assert max(n for n, _ in sizes) == 5
    assert max(n for _, n in sizes) == 2
    for key, one in of_seven.items():
        assert dict(of_parts[key].scores)["nll"] == pytest.approx(dict(one.scores)["nll"], rel=1e-4)
