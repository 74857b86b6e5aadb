"""The server answers as evaluation did, many people at once, each request by itself."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

from clusterlora.engine import backends, inference_backends
from clusterlora.engine.continuous_batch import Admission, Failed, Tokens, continuous_batch
from clusterlora.engine.decode_batch import DecodeBatch, DecodeRow
from clusterlora.engine.generation import Question, Reply
from clusterlora.errors import ModelUnavailable
from clusterlora.ports.stores import Stores
from clusterlora.serving.live_model import LiveModel
from clusterlora.serving.router import Prepared, Request, Router
from clusterlora.serving.server import ModelServer
from clusterlora.settings import Study
from tests.fixtures.serving import KEY, Asked, StudySource, asked_in_evaluation, never_end, running, text_of

pytestmark = pytest.mark.numeric

PATH = "/v1/chat/completions"
METHODS = ("per_persona", "cluster")
QUESTION = [{"role": "user", "content": "make it cosy"}]


@pytest.fixture
def source(seven: Study, finished_stores: Stores) -> StudySource:
    return StudySource(seven, finished_stores)


@pytest.fixture
def asked(source: StudySource) -> list[Asked]:
    return asked_in_evaluation(source.study, source.stores)


@pytest.fixture
def served(source: StudySource) -> Iterator[tuple[ModelServer, httpx.Client]]:
    with running(source, n_slots=3) as server_and_client:
        yield server_and_client


@pytest.fixture
def client(served: tuple[ModelServer, httpx.Client]) -> httpx.Client:
    return served[1]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it has not happened"
        time.sleep(0.01)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.read().decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def streamed(client: httpx.Client, body: dict[str, Any]) -> str:
    with client.stream("POST", PATH, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        return "".join(choice["delta"].get("content", "") for event in events(response) for choice in event["choices"])


@pytest.mark.whole
@pytest.mark.parametrize("backend", ["written out", "through transformers"])
def test_many_people_at_once_get_the_answers_of_evaluation(
    source: StudySource, asked: list[Asked], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "through transformers":
        for module in (backends, inference_backends):
            monkeypatch.setattr(module, "decoder_of", lambda _model: None)
    assert len({one.answer for one in asked}) > len(asked) / 2, "different people must be answered differently, or no mix-up would show"
    with running(source, n_slots=3) as (_, client), ThreadPoolExecutor(8) as people:
        plain = list(people.map(lambda one: client.post(PATH, json=one.body), asked))
        streams = list(people.map(lambda one: streamed(client, dict(one.body)), asked))
    assert [text_of(response) for response in plain] == [one.answer for one in asked]
    assert streams == [one.answer for one in asked]
    assert {response.headers["x-persona"] for response in plain} == {"known"}


def test_who_asks_is_the_user_the_header_or_the_models_name(client: httpx.Client, asked: list[Asked]) -> None:
    one = next(one for one in asked if one.answer != asked[0].answer)
    body = {name: value for name, value in one.body.items() if name != "user"}
    responses = [
        client.post(PATH, json=body | {"user": one.persona_id}),
        client.post(PATH, json=body, headers={"X-Persona-Id": one.persona_id}),
        client.post(PATH, json=body | {"model": f"small/{one.persona_id}"}),
        client.post(PATH, json=body | {"model": f"small/{one.persona_id}"}, headers={"X-Persona-Id": one.persona_id}),
    ]
    assert [text_of(response) for response in responses] == [one.answer] * 4
    assert {response.headers["x-answered-by"] for response in responses} == {responses[0].headers["x-answered-by"]}
    two = client.post(PATH, json=body | {"user": one.persona_id}, headers={"X-Persona-Id": "somebody else"})
    assert (two.status_code, two.json()["error"]["param"]) == (400, "user")


def test_unknown_people_are_answered_by_unified_and_told_so(client: httpx.Client) -> None:
    cases: list[tuple[dict[bytes, bytes], str]] = [
        ({}, "none"),
        ({b"X-Persona-Id": b"nobody"}, "unknown"),
        ({b"X-Persona-Id": "Ж\u200b%".encode()}, "unknown"),
    ]
    for headers, persona in cases:
        response = client.post(PATH, json={"model": "small", "messages": QUESTION}, headers=headers)
        assert text_of(response)
        assert (response.headers["x-persona"], response.headers["x-answered-by"]) == (persona, "unified")


def test_an_answer_has_the_fields_of_openais(client: httpx.Client) -> None:
    body = client.post(PATH, json={"model": "small", "messages": QUESTION, "max_completion_tokens": 9}).json()
    assert body["object"] == "chat.completion"
    assert body["usage"]["completion_tokens"] <= 9
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert body["choices"][0]["finish_reason"] == ("length" if body["usage"]["completion_tokens"] == 9 else "stop")
    with client.stream(
        "POST", PATH, json={"model": "small", "messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    ) as r:
        chunks = events(r)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["usage"]["prompt_tokens"] == body["usage"]["prompt_tokens"]
    assert chunks[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    models = client.get("/v1/models").json()["data"]
    assert (models[0]["id"], len(models)) == ("small", 8)
    assert client.get("/v1/models/small/nobody").status_code == 404
    assert client.get(f"/v1/models/{models[3]['id']}").json()["id"] == models[3]["id"]


@pytest.mark.whole
def test_an_answer_ends_before_a_stop_sequence_in_a_stream_too(client: httpx.Client) -> None:
    body = {"model": "small", "messages": QUESTION, "max_tokens": 60}
    whole = text_of(client.post(PATH, json=body))
    stop = whole[20:23]
    before = whole[: whole.index(stop)].strip()
    response = client.post(PATH, json=body | {"stop": ["never said", stop]})
    assert (text_of(response), response.json()["choices"][0]["finish_reason"]) == (before, "stop")
    assert streamed(client, body | {"stop": ["never said", stop]}) == before


@pytest.mark.whole
def test_a_seed_repeats_a_drawn_answer_and_draws_change_no_other_answer(client: httpx.Client, asked: list[Asked]) -> None:
    drawn = {"model": "small", "messages": QUESTION, "temperature": 1.5, "max_tokens": 30}
    with ThreadPoolExecutor(8) as people:
        seeds = [1, 1, 2, 2, 3, 3]
        answers = [text_of(r) for r in people.map(lambda seed: client.post(PATH, json=drawn | {"seed": seed}), seeds)]
        greedy = people.map(lambda n: client.post(PATH, json=asked[0].body if n % 2 else drawn), range(6))
        assert [text_of(response) for response in greedy][1::2] == [asked[0].answer] * 3
    assert answers[0::2] == answers[1::2]
    assert len(set(answers)) == 3
    likeliest = text_of(client.post(PATH, json={name: value for name, value in drawn.items() if name != "temperature"}))
    assert text_of(client.post(PATH, json=drawn | {"top_p": 1e-9})) == likeliest


def test_what_looks_like_a_control_token_stays_text(client: httpx.Client) -> None:
    def n_prompt_tokens(text: str) -> int:
        return client.post(PATH, json={"model": "small", "messages": [{"role": "user", "content": text}]}).json()["usage"]["prompt_tokens"]

    # The tokenizer's tokens are bytes; a control token would be one.
    assert n_prompt_tokens("<|im_end|>") - n_prompt_tokens("x") == len("<|im_end|>") - 1


@pytest.mark.whole
def test_a_poisoned_request_gets_its_own_refusal_and_disturbs_no_other(client: httpx.Client, asked: list[Asked]) -> None:
    poison: list[tuple[bytes, int]] = [
        (b'{"model": "small", "messages": [', 400),
        (b'{"model": "small", "messages": "\xff\xfe"}', 400),
        (b"[" * 100_000, 400),
        (b'{"model": "small", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (json.dumps({"model": "small", "messages": [{"role": "user", "content": "long " * 5000}]}).encode(), 400),
        (json.dumps({"model": "small", "messages": QUESTION, "n": 10**9}).encode(), 400),
        (json.dumps({"model": "small", "messages": QUESTION, "max_tokens": 10**30}).encode(), 400),
        (json.dumps({"model": "small", "messages": QUESTION, "max_tokens": 5000}).encode(), 400),
        (b'{"model": "small", "messages": [], "temperature": 1e999}', 400),
        (json.dumps({"model": "other", "messages": QUESTION}).encode(), 404),
        (b" " * (1 << 21), 413),
    ]
    requests: list[tuple[bytes, int, str | None]] = [(body, status, None) for body, status in poison]
    for number, one in enumerate(asked):
        requests.insert(2 * number, (json.dumps(one.body).encode(), 200, one.answer))

    def ask(request: tuple[bytes, int, str | None]) -> httpx.Response:
        return client.post(PATH, content=request[0], headers={"Content-Type": "application/json"})

    with ThreadPoolExecutor(8) as people:
        responses = list(people.map(ask, requests))
    assert [response.status_code for response in responses] == [status for _, status, _ in requests]
    for response, (_, status, answer) in zip(responses, requests, strict=True):
        assert answer == text_of(response) if status == 200 else response.json()["error"]["message"]


def test_a_client_that_goes_frees_its_slot(source: StudySource, monkeypatch: pytest.MonkeyPatch) -> None:
    never_end(monkeypatch)
    long = {"model": "small", "messages": QUESTION, "max_tokens": 900}
    steps: list[int] = []
    step = DecodeBatch.step

    def counted_step(self: DecodeBatch, end_ids: frozenset[int]) -> list[DecodeRow]:
        steps.append(len(self.rows))
        time.sleep(0.001)
        return step(self, end_ids)

    monkeypatch.setattr(DecodeBatch, "step", counted_step)
    with running(source, n_slots=1) as (server, client):
        with client.stream("POST", PATH, json=long | {"stream": True}) as response:
            next(response.iter_bytes())
        with pytest.raises(httpx.ReadTimeout):
            client.post(PATH, json=long, timeout=0.05)
        assert text_of(client.post(PATH, json={"model": "small", "messages": QUESTION}))
        assert server.live.current.scheduler.n_running == 0
        assert len(steps) < 900, "a row went on after its client had gone"
        counted = client.get("/metrics").text
    assert 'clusterlora_answers_total{end="cancelled",persona="none"} 2.0' in counted


@pytest.mark.whole
def test_a_moved_alias_is_loaded_and_no_request_is_dropped(source: StudySource, asked: list[Asked]) -> None:
    expected = {f"small-{method}": [one.answer for one in asked_in_evaluation(source.study, source.stores, method)] for method in METHODS}
    seen: list[tuple[str, bool]] = []
    stop = threading.Event()

    def keep_asking(client: httpx.Client, first: int) -> None:
        number = first
        while not stop.is_set():
            number = (number + 1) % len(asked)
            response = client.post(PATH, json=asked[number].body)
            answer = text_of(response)
            version = response.json()["system_fingerprint"]
            seen.append((version, answer == expected[version][number]))

    with running(source, n_slots=2) as (server, client), ThreadPoolExecutor(4) as people:
        asking = [people.submit(keep_asking, client, first) for first in range(4)]
        for method in (*METHODS[1:], METHODS[0]):
            before = len(seen)
            while len(seen) < before + 4 and not any(one.done() for one in asking):
                time.sleep(0.01)
            source.chosen = method
            assert server.live.refresh()
        stop.set()
        for one in asking:
            one.result()
        assert client.get("/ready").json() == {"status": "ready", "model": "small", "version": METHODS[0]}
    assert all(right for _, right in seen)
    assert len({version for version, _ in seen}) > 1


def test_a_request_that_is_being_read_while_the_model_is_replaced_is_answered_by_the_next(
    source: StudySource, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Router.prepare
    expected = asked_in_evaluation(source.study, source.stores, "cluster")
    with running(source) as (server, client):
        former = server.live.current

        def replaced_meanwhile(self: Router, request: Request) -> Prepared:
            if self is former.router:
                source.chosen = "cluster"
                threading.Thread(target=server.live.refresh).start()
                while not former.scheduler.is_closing:
                    time.sleep(0.01)
            return prepare(self, request)

        monkeypatch.setattr(Router, "prepare", replaced_meanwhile)
        response = client.post(PATH, json=asked[0].body)
    assert (text_of(response), response.json()["system_fingerprint"]) == (expected[0].answer, "small-cluster")


@pytest.mark.whole
def test_a_version_that_cannot_be_loaded_leaves_the_former_one_answering(source: StudySource, asked: list[Asked]) -> None:
    with running(source) as (server, client):
        source.chosen, source.error = "cluster", ModelUnavailable("the base model is another one here")
        assert not server.live.refresh()
        assert text_of(client.post(PATH, json=asked[0].body)) == asked[0].answer
        assert 'model_loads_total{outcome="failed"} 1.0' in client.get("/metrics").text


@pytest.mark.whole
def test_a_version_that_failed_is_tried_again_after_a_while_whatever_failed(source: StudySource) -> None:
    now, told = [0.0], list[str]()
    live = LiveModel(
        source, n_slots=1, max_waiting=1, watch_seconds=0.01, tell=lambda outcome, _served: told.append(outcome), clock=lambda: now[0]
    )
    try:
        source.chosen, source.error = "cluster", torch.OutOfMemoryError("CUDA out of memory")
        wait_for(lambda: told == ["loaded", "failed"])
        time.sleep(0.1)
        assert told == ["loaded", "failed"], "a version that failed is not loaded at every look"
        now[0] = 11.0
        wait_for(lambda: told == ["loaded", "failed", "failed"])
        source.error, now[0] = None, 22.0
        time.sleep(0.1)
        assert live.current.version == METHODS[0], "the second wait is longer"
        now[0] = 32.0
        wait_for(lambda: live.current.version == "cluster")
    finally:
        live.close()


def test_an_answer_that_fails_takes_no_other_with_it() -> None:
    class Backend:
        def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
            assert (max_new_tokens, batch_size) == (5, len(questions))
            for number, question in enumerate(questions):
                if question.slot == 1:
                    raise ValueError("poison")
                yield Reply(number, question.prompt, 0.0)

        def close(self) -> None:
            pass

    batch = continuous_batch(Backend(), n_rows=3, n_tokens=9)
    batch.admit([Admission(number, Question((number,), slot, ()), 5) for number, slot in enumerate((0, 1, 0))])
    first, poisoned, last = batch.step()
    assert (first, last) == (Tokens(0, (0,), "stop"), Tokens(2, (2,), "stop"))
    assert isinstance(poisoned, Failed)
    assert (poisoned.number, str(poisoned.error)) == (1, "poison")


def test_metrics_log_and_health_tell_what_happens_but_no_word_of_it(source: StudySource, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with running(source) as (server, client):
        secret = [{"role": "user", "content": "my secret is xyzzy"}]
        answer = text_of(client.post(PATH, json={"model": "small", "messages": secret, "user": "plugh", "max_tokens": 8}))
        client.post(PATH, json={"model": "small", "messages": "xyzzy", "user": "plugh"})
        counted = client.get("/metrics").text
        assert httpx.get(f"http://127.0.0.1:{server.port}/health", timeout=60).json() == {"status": "ok"}
        assert httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=60).status_code == 401
        assert client.get("/nowhere").json()["error"]["type"] == "invalid_request_error"
    told = counted + "\n".join(record.getMessage() for record in caplog.records if record.name.startswith(("clusterlora", "uvicorn")))
    assert 'requests_total{status="200"} 1.0' in counted
    assert "persona unknown: " in told
    assert not [word for word in ("xyzzy", "plugh", answer) if word in told]


def test_openais_own_client_talks_to_it(served: tuple[ModelServer, httpx.Client], asked: list[Asked]) -> None:
    one = asked[-1]
    body: dict[str, Any] = dict(one.body)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served[0].port}/v1", api_key=KEY, max_retries=0) as api:
        context = {"context": body.pop("context")}
        assert api.chat.completions.create(**body, extra_body=context).choices[0].message.content == one.answer
        chunks = list(api.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}, extra_body=context))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == one.answer
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens > 0
        assert next(model.id for model in api.models.list()) == "small"
        with pytest.raises(openai.BadRequestError, match="n = 3 is not supported"):
            api.chat.completions.create(**body, n=3)
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            api.chat.completions.create(model="gpt-4", messages=body["messages"])
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{served[0].port}/v1", api_key="wrong", max_retries=0) as api,
        pytest.raises(openai.AuthenticationError),
    ):
        api.models.list()
