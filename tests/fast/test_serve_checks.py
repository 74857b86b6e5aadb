"""What a server refuses before it answers, and how it turns tokens into text that is sent once."""

import json
import stat
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.engine.continuous_batch import Admission, Tokens
from clusterlora.engine.decode_batch import DecodeBatch, DecodeRow
from clusterlora.engine.generation import Question
from clusterlora.engine.sampling import Sampler, Sampling
from clusterlora.errors import BadSettings
from clusterlora.ports.stores import Stores
from clusterlora.serving.answer_text import AnswerText
from clusterlora.serving.chat_request import read_chat_request
from clusterlora.serving.guard import TokenBucket
from clusterlora.serving.keys import load_or_create_keys
from clusterlora.serving.live_model import LiveModel
from clusterlora.serving.origin_check import refusal_reason
from clusterlora.serving.refusal import Refusal
from clusterlora.serving.scheduler import Busy, Scheduler
from clusterlora.serving.server import ServerSettings, listen
from clusterlora.settings import Study
from tests.fixtures.serving import KEY, StudySource, never_end, running

BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "make it cosy"}]}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "assistant", "content": "yes"}]}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "ann"}]}, "messages[0]"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"n": "1"}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1, "top_p": -0.1}, "top_p"),
        ({"top_p": 0.5}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"context": {"time": 3}}, "context"),
        ({"user": 7}, "user"),
        ({"best_of": 2}, "best_of"),
        ({"\ud800": 1}, "\\ud800"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refusal:
        read_chat_request(json.dumps(BODY | change).encode())
    assert (refusal.value.status, refusal.value.param) == (400, param)
    assert json.dumps(refusal.value.body(), ensure_ascii=False).encode(), "it can be sent"
    assert refusal.value.body()["error"]["type"] == "invalid_request_error"


def test_values_that_ask_for_nothing_are_accepted() -> None:
    nothing = {"n": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "logprobs": False, "tools": [], "temperature": 0, "top_p": 0.9}
    asked = read_chat_request(json.dumps(BODY | nothing | {"seed": None, "response_format": {"type": "text"}}).encode())
    assert asked.sampling is None
    called = {"messages": [{"role": "assistant", "content": "Hi", "tool_calls": []}, *BODY["messages"]]}
    assert [turn.text for turn in read_chat_request(json.dumps(BODY | called).encode()).turns] == ["Hi", "make it cosy"]
    parts = [{"type": "text", "text": "make it "}, {"type": "text", "text": "cosy"}]
    in_parts = read_chat_request(
        json.dumps(BODY | {"messages": [{"role": "developer", "content": "Hi"}, {"role": "user", "content": parts}]}).encode()
    )
    assert [(turn.role, turn.text) for turn in in_parts.turns] == [("system", "Hi"), ("user", "make it cosy")]


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(alphabet="ab \nЖ🙂", max_size=30), st.lists(st.text(alphabet="ab Ж", min_size=1, max_size=3), max_size=3))
def test_what_is_sent_piece_by_piece_is_the_whole_answer(text: str, stop: list[str]) -> None:
    answer, pieces = AnswerText(Bytes(), stop), []  # pyrefly: ignore[bad-argument-type]
    for token in text.encode():
        pieces.append(answer.add([token]))
        assert answer.text.startswith("".join(pieces)), "what was sent cannot be taken back"
    pieces.append(answer.rest())
    cuts = [text.index(one) for one in stop if one in text]
    assert "".join(pieces) == answer.text == text[: min(cuts, default=len(text))].strip()
    assert answer.is_stopped == bool(cuts)
    at_once = AnswerText(Bytes(), stop)  # pyrefly: ignore[bad-argument-type]
    assert at_once.add(text.encode()) + at_once.rest() == answer.text
    assert at_once.n_tokens == answer.n_tokens


@pytest.mark.whole
def test_tokens_are_drawn_from_the_nucleus_as_often_as_their_probability_says() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    sampler = Sampler(Sampling(1.0, 0.7, seed=3))
    drawn = Counter(sampler.draw(logits) for _ in range(4000))
    assert drawn.keys() == {0, 1}
    assert drawn[0] / 4000 == pytest.approx(0.5 / 0.8, abs=0.03)
    assert {Sampler(Sampling(1e-300, 1.0, seed)).draw(logits) for seed in range(9)} == {0}
    assert {Sampler(Sampling(1.0, 0.0, seed)).draw(logits) for seed in range(9)} == {0}
    hot = Counter(Sampler(Sampling(2.0, 1.0, seed)).draw(logits) for seed in range(500))
    assert hot.keys() == {0, 1, 2, 3}


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "api-keys"
    first = load_or_create_keys(file)
    key = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for keys in (first, load_or_create_keys(file)):
        assert keys.number(f"Bearer {key}") == 0
        assert [keys.number(one) for one in ("", "Bearer", f"Basic {key}", f"Bearer {key}x", "Bearer ключ")] == [None] * 5
    file.write_text(f"\ufeff# ours\n{key}\nsk-of-somebody-else-1\n")
    assert load_or_create_keys(file).number("bearer sk-of-somebody-else-1") == 1


@pytest.mark.parametrize(
    ("text", "mode", "complaint"),
    [
        ("\n", 0o600, "no API key"),
        ("short\n", 0o600, "shorter than 16"),
        ("sk-long-enough-for-all\n", 0o622, "may write"),
        ("clé-long-enough-for-all\n", 0o600, "ASCII"),
    ],
)
def test_keys_that_others_may_choose_or_guess_are_refused(tmp_path: Path, text: str, mode: int, complaint: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(BadSettings, match=complaint):
        load_or_create_keys(file)


def test_a_server_without_key_listens_on_loopback_only() -> None:
    with pytest.raises(BadSettings, match="--no-key"):
        listen(ServerSettings(host="0.0.0.0", port=0), has_keys=False)
    with pytest.raises(BadSettings, match="not an IP address"):
        listen(ServerSettings(host="example.org"), has_keys=True)
    with listen(ServerSettings(port=0), has_keys=False) as listener:
        listener.listen()
        with pytest.raises(BadSettings, match="in use"):
            listen(ServerSettings(port=listener.getsockname()[1]), has_keys=True)


@pytest.mark.parametrize(
    ("host", "requested", "is_own"),
    [
        ("127.0.0.1", "LOCALHOST:8000", True),
        ("127.0.0.1", "ASSISTANT.home", True),
        ("::", "[::1]:8000", True),
        ("::1", "[0:0:0:0:0:0:0:1]:8000", True),
        ("::", "[fd00::7]:8000", True),
        ("localhost", "10.0.0.1:8000", False),
        ("localhost", "evil.example", False),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_host_names_ignore_case_and_addresses_their_spelling(host: str, requested: str, is_own: bool) -> None:
    assert (refusal_reason({"host": requested}, "GET", host, names=("Assistant.Home",)) is None) == is_own


def test_a_bucket_refills_with_time() -> None:
    now = [0.0]
    bucket = TokenBucket(2, lambda: now[0])
    assert [bucket.seconds_to_wait() for _ in range(3)] == [0, 0, 30]
    now[0] = 31.0
    assert bucket.seconds_to_wait() == 0
    assert 0 < bucket.seconds_to_wait() <= 30


def test_requests_of_others_pages_and_names_and_too_many_are_refused(seven: Study, finished_stores: Stores) -> None:
    with running(StudySource(seven, finished_stores), requests_per_minute=3, names=("assistant.home",)) as (_, client):
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/v1/models", headers={"Host": "assistant.home"}).status_code == 200
        assert client.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}x"}).json()["error"]["code"] == "invalid_api_key"
        assert [client.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
        refused = client.get("/v1/models")
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert client.get("/ready").status_code == 200


def test_no_more_than_so_many_requests_wait(seven: Study, finished_stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    is_refused, step = Event(), DecodeBatch.step

    def step_then(self: DecodeBatch, end_ids: frozenset[int]) -> list[DecodeRow]:
        assert is_refused.wait(60)
        return step(self, end_ids)

    monkeypatch.setattr(DecodeBatch, "step", step_then)
    streamed = BODY | {"stream": True}
    with running(StudySource(seven, finished_stores), n_slots=1, max_waiting=1) as (server, client):
        with (
            client.stream("POST", "/v1/chat/completions", json=streamed) as first,
            client.stream("POST", "/v1/chat/completions", json=streamed) as second,
        ):
            # A discarded iterator would close its response.
            iterators = [first.iter_bytes(), second.iter_bytes()]
            assert all(next(iterator) for iterator in iterators)
            refused = httpx.post(f"http://127.0.0.1:{server.port}/v1/chat/completions", json=BODY, headers=client.headers, timeout=60)
            is_refused.set()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_busy")


class OneSlow:
    """A batch of one question, which joins when it is told to."""

    def __init__(self) -> None:
        self.may_join, self.running = Event(), list[int]()

    @property
    def n_running(self) -> int:
        return len(self.running)

    @property
    def n_free(self) -> int:
        return 1 - self.n_running

    def admit(self, admissions: Sequence[Admission]) -> list[Tokens]:
        assert self.may_join.wait(60)
        self.running += [admission.number for admission in admissions]
        return []

    def step(self) -> list[Tokens]:
        ended, self.running = self.running, []
        return [Tokens(number, (), "stop") for number in ended]

    def cancel(self, number: int) -> None: ...

    def clear(self) -> None: ...


def test_a_request_for_which_a_slot_is_free_takes_no_place_in_the_queue() -> None:
    batch, answered = OneSlow(), list[Tokens | Exception]()
    scheduler = Scheduler(batch, max_waiting=1)

    def submit() -> int:
        return scheduler.submit(Question((1, 2), 0, ()), limit=1, deliver=answered.append)

    # The first is still in the queue, or joins, which is neither waiting nor running.
    submit()
    submit()
    with pytest.raises(Busy):
        submit()
    while scheduler.n_waiting > 1:
        time.sleep(0.001)
    with pytest.raises(Busy):
        submit()
    batch.may_join.set()
    scheduler.close()
    assert answered == [Tokens(0, (), "stop"), Tokens(1, (), "stop")]


@pytest.mark.whole
def test_an_answer_that_does_not_finish_in_time_is_refused(seven: Study, finished_stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    never_end(monkeypatch)
    step = DecodeBatch.step

    def slow_step(self: DecodeBatch, end_ids: frozenset[int]) -> list[DecodeRow]:
        time.sleep(0.005)
        return step(self, end_ids)

    monkeypatch.setattr(DecodeBatch, "step", slow_step)
    with ThreadPoolExecutor(1) as people, running(StudySource(seven, finished_stores), n_slots=1, stop_seconds=1) as (server, client):
        url, body = f"http://127.0.0.1:{server.port}/v1/chat/completions", BODY | {"max_tokens": 900}
        late = people.submit(httpx.post, url, json=body, headers=client.headers, timeout=60)
        while not server.live.current.scheduler.n_running:
            time.sleep(0.01)
        server.stop()
        assert (late.result().status_code, late.result().json()["error"]["message"]) == (503, "the server is stopping")


def test_slots_that_do_not_fit_into_memory_are_refused(seven: Study, finished_stores: Stores) -> None:
    with pytest.raises(BadSettings, match="memory for 100000000 slots"):
        LiveModel(StudySource(seven, finished_stores), n_slots=100_000_000, max_waiting=1)
