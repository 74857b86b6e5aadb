"""Answering with many adapters at once gives what PEFT gives one by one; choosing among arms sees val only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional

from clusterlora.adapters.compositions import combined_weights
from clusterlora.chat.encoder import PromptEncoder
from clusterlora.engine import inference_backends
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question, Reply
from clusterlora.engine.inference_backends import InferenceBackend, inference_backend
from clusterlora.engine.job import TrainingJob
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.prefix_sharing import prefill_streams
from clusterlora.engine.reference import train
from clusterlora.engine.stacked import StackedModel, Weights, read_adapter
from clusterlora.errors import BadData, OutOfMemory
from clusterlora.evaluation import answer
from clusterlora.evaluation.answer import Answerer, AnswerRequest
from clusterlora.evaluation.select import select_arm
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.settings import PreparedEvaluation, PreparedModel
from clusterlora.values import Answer, Dialogue, Item, Persona, Turn, WeightedAdapter
from tests.fast.test_labels import NoEmbedder

pytestmark = pytest.mark.numeric

RECIPE = Recipe(rank=4, alpha=8, dropout=0.0, epochs=4, batch_size=2, learning_rate=2e-2)


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> BaseModel:
    return load_base(str(tiny_base_folder))


@pytest.fixture(scope="module")
def adapters(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of ranks 2, 4 and 6 that have learnt different answers."""
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    root = tmp_path_factory.mktemp("adapters")
    jobs = [
        TrainingJob(
            str(number),
            f"a{number}",
            replace(RECIPE, rank=2 * number + 2),
            tuple(encoder.encode_dialogues((Turn("user", f"ask {i}"), Turn("assistant", word * (i + 1))) for i in range(4))),
            root / str(number),
        )
        for number, word in enumerate(("yes ", "no ", "perhaps "))
    ]
    return [result.folder for result in train(base, jobs, micro_batch=2, run_log=SilentLog())]


def question(encoder: PromptEncoder, turns: Sequence[Turn], slot: int, reference: str) -> Question:
    (turn,) = encoder.encode_turns([(turns, reference)])
    return Question(turn.prompt, slot, turn.response)


def questions(base: BaseModel) -> list[Question]:
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    return [question(encoder, (Turn("user", f"ask {i} " * (i % 4 + 1)),), i % 4, f"yes {i}") for i in range(11)]


def dialogue_questions(base: BaseModel) -> list[Question]:
    """Two turns of each of three dialogues under two slots, in an order that separates the turns of a dialogue."""
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    all_questions = []
    for number in range(3):
        turns = (Turn("user", f"ask {number}"), Turn("assistant", f"yes {number}"), Turn("user", "more"), Turn("assistant", "no"))
        all_questions += [question(encoder, turns[:end], slot, turns[end].text) for end in (3, 1) for slot in (1, 2)]
    return all_questions[::2] + all_questions[1::2]


def questions_with_shared_prefixes(base: BaseModel) -> list[Question]:
    """Dialogues of three personas: all share a prefix, those of one persona a longer one, and one dialogue is only the prefix."""
    encoder = PromptEncoder(base.tokenizer, max_length=512)
    all_questions = []
    for who, n_dialogues in (("he likes tea " * 6, 4), ("she likes rain " * 9, 5), ("", 1)):
        for number in range(n_dialogues):
            turns = (
                Turn("system", "You are a home. " * 4 + who),
                *(Turn("user", f"ask {number} " * number), Turn("assistant", f"yes {number}"))[: None if number else 0],
                Turn("user", "more"),
                Turn("assistant", "no"),
            )
            ends = [n for n, turn in enumerate(turns) if turn.role == "assistant"]
            all_questions += [question(encoder, turns[:end], slot, turns[end].text) for slot in (0, 1, 3) for end in ends]
    return all_questions[::2] + all_questions[1::2]


def stacked(base: BaseModel, adapters: list[Path]) -> StackedModel:
    model = StackedModel(base.model)
    model.load([read_weights(folder) for folder in adapters])
    return model


class Peft:
    """PEFT's own answers, question by question, on a model that has only the question's adapter."""

    def __init__(self, base: BaseModel, adapters: list[Path]) -> None:
        self.models: list[Any] = [load_base(base.name).model.eval()]
        self.models += [PeftModel.from_pretrained(load_base(base.name).model, str(folder)).eval() for folder in adapters]
        self.answers: dict[tuple[Question, int], tuple[list[int], float]] = {}

    def answer(self, question: Question, *, new_tokens: int) -> tuple[list[int], float]:
        """Return the greedy answer and the NLL of the reference."""
        if (question, new_tokens) not in self.answers:
            self.answers[question, new_tokens] = self._answer(question, new_tokens)
        return self.answers[question, new_tokens]

    @torch.inference_mode()
    def _answer(self, question: Question, new_tokens: int) -> tuple[list[int], float]:
        model = self.models[question.slot]
        ids = torch.tensor([question.prompt])
        answer = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=2
        )
        text = [i for i in answer[0, ids.shape[1] :].tolist() if i != 2]
        whole = torch.tensor([question.prompt + question.reference])
        logits = model(input_ids=whole).logits[0, len(question.prompt) - 1 : -1]
        return text, float(functional.cross_entropy(logits, torch.tensor(question.reference)))


@pytest.fixture(scope="module")
def peft(base: BaseModel, adapters: list[Path]) -> Peft:
    return Peft(base, adapters)


def assert_as_peft_answers(replies: Mapping[int, Reply], all_questions: Sequence[Question], peft: Peft, *, new_tokens: int) -> None:
    """Assert that every question has a reply with PEFT's tokens and likelihood."""
    assert sorted(replies) == list(range(len(all_questions)))
    for number, question in enumerate(all_questions):
        text, expected_nll = peft.answer(question, new_tokens=new_tokens)
        assert list(replies[number].ids) == text
        assert replies[number].nll == pytest.approx(expected_nll, rel=1e-4)


@pytest.fixture(params=["written out", "written out, as on a GPU", "through transformers"])
def ours(
    request: pytest.FixtureRequest, base: BaseModel, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[InferenceBackend]:
    """The three adapters in the slots 1 to 3 of every inference backend."""
    if request.param == "written out, as on a GPU":
        request.getfixturevalue("as_on_a_gpu")
    if request.param == "through transformers":
        monkeypatch.setattr(inference_backends, "decoder_of", lambda _model: None)
    backend = inference_backend(base, [read_weights(folder) for folder in adapters])
    yield backend
    backend.close()


@pytest.mark.whole
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_mixed_batches_answer_token_for_token_like_peft_one_by_one(
    ours: InferenceBackend, base: BaseModel, peft: Peft, batch_size: int
) -> None:
    all_questions = questions(base)
    replies = {reply.number: reply for reply in ours.reply(all_questions, max_new_tokens=12, batch_size=batch_size)}
    assert_as_peft_answers(replies, all_questions, peft, new_tokens=12)
    assert len({replies[i].ids for i in range(4)}) > 1, "the adapters must answer differently for this test to mean anything"
    assert len({len(reply.ids) for reply in replies.values()}) > 1, "rows must finish at different steps for this test to mean anything"


@pytest.mark.whole
def test_turns_of_a_dialogue_prefilled_in_one_pass_are_answered_as_if_alone(ours: InferenceBackend, base: BaseModel, peft: Peft) -> None:
    all_questions = dialogue_questions(base)
    replies = {reply.number: reply for reply in ours.reply(all_questions, max_new_tokens=6, batch_size=4)}
    likelihoods = {reply.number: reply.nll for reply in ours.reply(all_questions, max_new_tokens=None, batch_size=4)}
    assert len(all_questions) == 12
    for number, question in enumerate(all_questions):
        text, expected_nll = peft.answer(question, new_tokens=6)
        assert list(replies[number].ids) == text
        assert [replies[number].nll, likelihoods[number]] == pytest.approx([expected_nll] * 2, rel=1e-4)


@pytest.mark.whole
@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_dialogues_that_share_a_prefix_are_answered_as_if_alone(
    ours: InferenceBackend, base: BaseModel, peft: Peft, batch_size: int
) -> None:
    all_questions = questions_with_shared_prefixes(base)
    sequences = [sequence for stream in prefill_streams(all_questions, batch_size, share=True) for sequence in stream]
    assert sorted(number for sequence in sequences for number in sequence.turns) == list(range(len(all_questions)))
    lengths = {sequence.prefix_length for sequence in sequences}
    assert len(lengths) > 2, f"shared prefixes of {lengths} tokens: those of one persona should be longer than the common one"
    replies = {reply.number: reply for reply in ours.reply(all_questions, max_new_tokens=6, batch_size=batch_size)}
    assert_as_peft_answers(replies, all_questions, peft, new_tokens=6)


def test_a_prefix_is_shared_only_where_that_saves_more_than_it_costs() -> None:
    def prefix_lengths(n_common: int, n_dialogues: int, n_longer: int = 0) -> set[int]:
        """Return the lengths of the shared prefixes of dialogues with `n_common` common tokens, and `n_longer` more in pairs."""
        all_questions = [Question((*range(n_common), *((900 + n // 2,) * n_longer), 500 + n, 600), 1, (7, 8)) for n in range(n_dialogues)]
        return {sequence.prefix_length for stream in prefill_streams(all_questions, 64, share=True) for sequence in stream}

    assert prefix_lengths(n_common=30, n_dialogues=50) == {0}, "too short to pay"
    assert prefix_lengths(n_common=60, n_dialogues=1) == {0}, "there is no other dialogue to share with"
    assert prefix_lengths(n_common=60, n_dialogues=6) == {60}
    assert prefix_lengths(n_common=60, n_dialogues=6, n_longer=10) == {60}, "sharing among all saves more than longer prefixes of pairs"
    assert prefix_lengths(n_common=20, n_dialogues=6, n_longer=90) == {110}
    all_questions = [Question((*range(60), 70, 600), 1, (7,)), Question((*range(60), 600), 1, (7,)), Question(tuple(range(60)), 1, (7,))]
    assert {sequence.prefix_length for stream in prefill_streams(all_questions, 64, share=True) for sequence in stream} == {59}, (
        "the last predicts at its 60th token"
    )


def test_equal_questions_without_a_reference_are_each_answered(ours: InferenceBackend, base: BaseModel, peft: Peft) -> None:
    all_questions = [replace(question, reference=()) for question in (*questions(base)[:5], *questions(base)[:5])]
    replies = {reply.number: reply.ids for reply in ours.reply(all_questions, max_new_tokens=5, batch_size=3)}
    for number, question in enumerate(all_questions):
        assert list(replies[number]) == peft.answer(replace(question, reference=(3,)), new_tokens=5)[0]


def test_closing_gives_the_base_model_back(base: BaseModel, adapters: list[Path]) -> None:
    ids = torch.tensor([questions(base)[0].prompt])
    before = base.model(input_ids=ids).logits
    model = stacked(base, adapters)
    with model.rows(torch.tensor([2])):
        assert not torch.allclose(base.model(input_ids=ids).logits, before)
    with model.rows(torch.tensor([0])):
        assert torch.allclose(base.model(input_ids=ids).logits, before, atol=1e-6)
    model.close()
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_a_stack_adds_its_layers_updates_each_with_its_weight(adapters: list[Path]) -> None:
    factors = {str(number): read_adapter(folder) for number, folder in enumerate(adapters)}
    both = combined_weights((WeightedAdapter("0"), WeightedAdapter("2", 0.25)), lambda name: Weights(factors[name]))
    for name, (a, b) in both.factors.items():
        expected = factors["0"][name][1] @ factors["0"][name][0] + 0.25 * factors["2"][name][1] @ factors["2"][name][0]
        assert torch.allclose(b @ a, expected, atol=1e-6)


def test_a_layer_of_weight_zero_changes_nothing(adapters: list[Path]) -> None:
    alone = read_adapter(adapters[0])
    both = combined_weights((WeightedAdapter("0"), WeightedAdapter("1", 0.0)), lambda name: read_weights(adapters[int(name)])).factors
    assert all(torch.equal(alone[name][0], both[name][0]) and torch.equal(alone[name][1], both[name][1]) for name in alone)


@pytest.mark.whole
def test_a_residual_of_zero_answers_like_unified(base: BaseModel, adapters: list[Path]) -> None:
    untrained = {name: (a, torch.zeros_like(b)) for name, (a, b) in read_adapter(adapters[1]).items()}
    by_name = {"unified": read_weights(adapters[0]), "residual": Weights(untrained)}
    layers = ((WeightedAdapter("unified"),), (WeightedAdapter("unified"), WeightedAdapter("residual", 0.5)))
    both = inference_backend(base, [combined_weights(some, by_name.__getitem__) for some in layers])
    all_questions = [replace(question, slot=slot) for slot in (1, 2) for question in questions(base)]
    replies = sorted(both.reply(all_questions, max_new_tokens=12, batch_size=4), key=lambda reply: reply.number)
    unified, hybrid = replies[: len(replies) // 2], replies[len(replies) // 2 :]
    assert [reply.ids for reply in unified] == [reply.ids for reply in hybrid]
    assert [reply.nll for reply in unified] == pytest.approx([reply.nll for reply in hybrid], rel=1e-5)


def test_an_adapter_of_another_base_is_refused_by_layer(base: BaseModel, adapters: list[Path]) -> None:
    factors = dict(read_adapter(adapters[0]))
    name, (a, b) = next(iter(factors.items()))
    model = StackedModel(base.model)
    for load in (model.load, partial(inference_backend, base)):
        with pytest.raises(BadData, match="belongs to another base"):
            load([Weights({name: (a[:, :-1], b)})])
        with pytest.raises(BadData, match=r"no layer model\.layers\.99"):
            load([Weights({"model.layers.99.q_proj": (a, b)})])
    model.close()


def test_answers_are_embedded_in_batches_while_others_are_generated(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Embeds:
        name = revision = "ones"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            happened.append(f"embedded {len(texts)}")
            return np.ones((len(texts), 1))

    class Log(SilentLog):
        def advance(self, units: int = 1, **values: float) -> None:  # noqa: ARG002
            happened.append("answered")

    monkeypatch.setattr(answer, "ANSWERS_PER_BATCH", 2)
    item = Item("i", "p", "test", (Turn("user", "ask"),), "yes")
    tasks = [AnswerRequest("s", replace(item, id=str(number), reference=f"yes {number}")) for number in range(4)]
    answerer = Answerer(base, Embeds(), PreparedEvaluation(max_new_tokens=4), PreparedModel(max_length=64))
    answerer.answer(tasks, {"s": Weights()}, metrics=("nll",), run_log=Log())
    assert happened == 4 * ["answered"]
    happened.clear()
    answerer.answer(tasks, {"s": Weights()}, metrics=("embedding_similarity",), run_log=Log())
    assert happened == 2 * ["answered", "embedded 4", "answered"]


@pytest.mark.parametrize(("metric", "labels"), [("rouge_l", ()), ("accuracy", ("no", "yes"))])
def test_answers_are_handed_over_in_batches_and_are_those_that_are_scored_together(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, metric: str, labels: tuple[str, ...]
) -> None:
    words = ("light", "lamp", "heating", "music", "door")
    tasks = [AnswerRequest("s", Item(word, "p", "test", (Turn("user", f"{word}? " * n),), "yes")) for n, word in enumerate(words, start=1)]
    answerer = Answerer(base, NoEmbedder(), PreparedEvaluation(max_new_tokens=4), PreparedModel(max_length=64), labels=labels)
    together = answerer.answer(tasks, {"s": Weights()}, metrics=(metric, "nll"), run_log=SilentLog())
    monkeypatch.setattr(answer, "ANSWERS_PER_BATCH", 2)
    batches: list[Sequence[Answer]] = []
    assert answerer.answer(tasks, {"s": Weights()}, metrics=(metric, "nll"), run_log=SilentLog(), on_scored=batches.append) == together
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert sorted((one for batch in batches for one in batch), key=lambda one: words.index(one.item_id)) == together


@pytest.mark.whole
def test_answering_that_runs_out_of_memory_goes_on_with_half_the_batch_and_remembers_it(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Embeds:
        name = revision = "ones"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if len(texts) < 8:
                raise MemoryError("std::bad_alloc")
            return np.ones((len(texts), 1))

    class Log(SilentLog):
        n = 0

        def advance(self, units: int = 1, **values: float) -> None:  # noqa: ARG002
            self.n += units

    tried: list[int] = []
    original = inference_backends.DecoderInference.reply

    def limited(self: Any, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        tried.append(batch_size)
        for reply in original(self, questions, max_new_tokens=max_new_tokens, batch_size=batch_size):
            yield reply
            if batch_size > 2:
                torch.empty(1 << 60, dtype=torch.uint8)

    item, log = Item("i", "p", "test", (Turn("user", "ask"),), "yes"), Log()
    tasks = [AnswerRequest("s", replace(item, id=str(number), reference=f"yes {number}")) for number in range(4)]
    settings = PreparedEvaluation(max_new_tokens=4, batch_size=8)
    expected = Answerer(base, Embeds(), settings, PreparedModel(max_length=64)).answer(
        tasks, {"s": Weights()}, metrics=("embedding_similarity",), run_log=SilentLog()
    )
    monkeypatch.setattr(inference_backends.DecoderInference, "reply", limited)
    monkeypatch.setattr(answer, "ANSWERS_PER_BATCH", 2)
    answerer = Answerer(base, Embeds(), settings, PreparedModel(max_length=64))
    for _ in range(2):
        answers = answerer.answer(tasks, {"s": Weights()}, metrics=("embedding_similarity",), run_log=log)
        assert [one.text for one in answers] == [one.text for one in expected]
    assert tried == [8, 4, 2, 2]
    assert log.n == 2 * len(tasks), "what is answered is not answered again"
    assert "ran out of memory at evaluation.batch_size 8" in caplog.text
    assert "no memory to score answers while others are generated; they are scored afterwards" in caplog.text
    monkeypatch.setattr(inference_backends.DecoderInference, "reply", lambda *_, **__: iter([torch.empty(1 << 60, dtype=torch.uint8)]))
    with pytest.raises(OutOfMemory, match=r"answering ran out of memory at evaluation.batch_size 1, .*; lower max_length"):
        answerer.answer(tasks, {"s": Weights()}, metrics=("nll",), run_log=log)


def test_a_metric_that_embeds_everybodys_train_answers_does_so_afterwards_where_they_do_not_fit_beside_the_model(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_open: list[bool] = [False]

    def opened(*given: Any) -> InferenceBackend:
        backend = inference_backend(*given)
        close = backend.close

        def closed() -> None:
            is_open[0] = False
            close()

        is_open[0] = True
        monkeypatch.setattr(backend, "close", closed)
        return backend

    class Embeds:
        name = revision = "afterwards"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if is_open[0]:
                raise MemoryError("std::bad_alloc")
            return np.random.default_rng(0).normal(size=(len(texts), 4))

    monkeypatch.setattr(answer, "inference_backend", opened)
    monkeypatch.setattr(answer, "ANSWERS_PER_BATCH", 2)
    dialogues = [Dialogue(f"d{n}", (Turn("user", "ask"), Turn("assistant", f"so {n}")), split="train") for n in range(4)]
    learnt = TrainResponses([Persona(p, None, tuple(dialogues)) for p in ("p", "q")])
    tasks = [AnswerRequest("s", Item(str(n), "p", "test", (Turn("user", "ask"),), f"yes {n}")) for n in range(4)]
    answerer = Answerer(base, Embeds(), PreparedEvaluation(max_new_tokens=4), PreparedModel(max_length=64), train=learnt)
    answers = answerer.answer(tasks, {"s": Weights()}, metrics=("persona_accuracy", "nll"), run_log=SilentLog())
    assert [one.item_id for one in answers] == ["0", "1", "2", "3"]
    assert caplog.text.count("they are scored afterwards") == 1


def test_answers_that_did_not_fit_are_scored_as_soon_as_what_generates_takes_less(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, size = inference_backends.DecoderInference.reply, [0]

    def limited(self: Any, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        size[0] = batch_size
        for number, reply in enumerate(original(self, questions, max_new_tokens=max_new_tokens, batch_size=batch_size), start=1):
            yield reply
            if batch_size > 2 and number == 5:
                torch.empty(1 << 60, dtype=torch.uint8)

    class Embeds:
        name = revision = "beside a small batch"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if size[0] > 2:
                raise MemoryError("std::bad_alloc")
            return np.ones((len(texts), 1))

    monkeypatch.setattr(inference_backends.DecoderInference, "reply", limited)
    monkeypatch.setattr(answer, "ANSWERS_PER_BATCH", 2)
    item = Item("i", "p", "test", (Turn("user", "ask"),), "yes")
    tasks = [AnswerRequest("s", replace(item, id=str(number), reference=f"yes {number}")) for number in range(10)]
    answerer = Answerer(base, Embeds(), PreparedEvaluation(max_new_tokens=4, batch_size=4), PreparedModel(max_length=64))
    batches: list[Sequence[Answer]] = []
    given = answerer.answer(tasks, {"s": Weights()}, metrics=("embedding_similarity",), run_log=SilentLog(), on_scored=batches.append)
    assert [one.item_id for one in given] == [str(number) for number in range(10)]
    assert [len(batch) for batch in batches] == [6, 2, 2]
    assert caplog.text.count("they are scored afterwards") == 1


def test_an_arm_is_chosen_only_when_it_gains_more_than_the_margin() -> None:
    default = np.array([1.0, 1.2, 0.9, 1.1])
    slightly, clearly = default - np.array([0.3, -0.28, 0.1, -0.1]), default - np.array([0.30, 0.25, 0.35, 0.30])
    assert select_arm([default, slightly], higher_is_better=False, margin_se=1.0) == 0
    assert select_arm([default, slightly, clearly], higher_is_better=False, margin_se=1.0) == 2
    assert select_arm([default, clearly], higher_is_better=True, margin_se=0.0) == 0
    assert select_arm([default[:1], clearly[:1]], higher_is_better=False, margin_se=1.0) == 0
    assert select_arm([default[:1], clearly[:1]], higher_is_better=False, margin_se=0.0) == 1
