"""The body of a request to /v1/chat/completions, checked: what cannot be done is refused by name, and nothing is ignored in silence.

Source: the reference of OpenAI's API, "Create chat completion".
"""

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clusterlora.engine.sampling import Sampling
from clusterlora.serving.refusal import Refusal
from clusterlora.values import Role, Turn

_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "metadata": ({},),
}
"""Parameters that this server does not have, with the values that ask for nothing; others are refused."""

_MAX_STOPS = 4
_MAX_STOP_CHARACTERS = 256
_MAX_MESSAGES = 1000


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a body asks for. `persona_id` is that of the model's name or of `user`; None where neither names one."""

    model: str
    turns: tuple[Turn, ...]
    user: str | None
    context: tuple[tuple[str, str], ...]
    stream: bool
    include_usage: bool
    stop: tuple[str, ...]
    max_tokens: int | None
    sampling: Sampling | None


def read_chat_request(body: bytes) -> ChatRequest:
    """Return what a body asks for. Raises Refusal, which names the parameter."""
    fields = _json_object(body)
    asked = {name: value for name, value in fields.items() if value is not None}
    for name, values in _WITHOUT_EFFECT.items():
        if name in asked and not any(type(asked[name]) is type(value) and asked[name] == value for value in values):
            if isinstance(asked[name], float) and asked[name] in values:
                continue
            alone = " or ".join(json.dumps(value) for value in values)
            raise Refusal(400, f"{name} = {_shown(asked[name])} is not supported; only {alone} is", param=name, code="unsupported_value")
    known = {"model", "messages", "user", "context", "stream", "stream_options", "stop", "max_tokens", "max_completion_tokens"}
    known |= {"temperature", "top_p", "seed", *_WITHOUT_EFFECT}
    if unknown := next((name for name in asked if name not in known), None):
        raise Refusal(
            400,
            f"parameter {_shown(unknown)} is not supported; leave it out",
            param=ascii(unknown[:100])[1:-1],
            code="unsupported_parameter",
        )
    stream = _of_type(asked, "stream", bool) or False
    return ChatRequest(
        model=_model(asked),
        turns=_turns(asked.get("messages")),
        user=_text(asked["user"], "user") if "user" in asked else None,
        context=_context(asked.get("context")),
        stream=stream,
        include_usage=_include_usage(asked, stream=stream),
        stop=_stop(asked.get("stop")),
        max_tokens=_max_tokens(asked),
        sampling=_sampling(asked),
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise Refusal(400, f"the body is not UTF-8: byte {problem.start} is not") from problem
    except RecursionError as problem:
        raise Refusal(400, "the body is not JSON that can be read: it is nested too deeply") from problem
    except ValueError as problem:
        raise Refusal(400, f"the body is not JSON: {problem!s:.200}") from problem
    if not isinstance(fields, dict):
        raise Refusal(400, "the body is not a JSON object; send one with model and messages")
    return fields


def _model(asked: Mapping[str, Any]) -> str:
    if "model" not in asked:
        raise Refusal(400, "model is missing; GET /v1/models lists those that there are", param="model")
    return _text(asked["model"], "model")


def _turns(messages: Any) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not 0 < len(messages) <= _MAX_MESSAGES:
        raise Refusal(400, f"messages is {_shown(messages)}; give a list of 1 to {_MAX_MESSAGES} messages", param="messages")
    turns = tuple(_turn(message, f"messages[{number}]") for number, message in enumerate(messages))
    if turns[-1].role != "user":
        raise Refusal(400, f"the last message is the {turns[-1].role}'s; it must be the user's, which is answered", param="messages")
    return turns


def _turn(message: Any, place: str) -> Turn:
    if not isinstance(message, dict):
        raise Refusal(400, f"{place} is {_shown(message)}, not an object with role and content", param=place)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise Refusal(400, f"{place}.role is {_shown(role)}; use {', '.join(_ROLES)}", param=f"{place}.role")
    if unknown := next(
        (
            name
            for name, value in message.items()
            if name not in ("role", "content") and not (value is None or (name == "tool_calls" and value == []))
        ),
        None,
    ):
        raise Refusal(400, f"{place}.{_shown(unknown)} is not supported; leave it out", param=place, code="unsupported_parameter")
    content = message.get("content")
    parts = content if isinstance(content, list) and content else [{"type": "text", "text": content}]
    texts: list[str] = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise Refusal(400, f"{place}.content has a part that is no text; this model reads text alone", param=f"{place}.content")
        texts.append(_text(part.get("text"), f"{place}.content"))
    return Turn(_ROLES[role], "".join(texts))


def _context(context: Any) -> tuple[tuple[str, str], ...]:
    """Return what both sides can see, as in the training data: clusterlora's own parameter."""
    if context is None:
        return ()
    if not isinstance(context, dict):
        raise Refusal(400, f"context is {_shown(context)}; give an object of texts", param="context")
    return tuple((_text(name, "context"), _text(value, "context")) for name, value in context.items())


def _include_usage(asked: Mapping[str, Any], *, stream: bool) -> bool:
    options = asked.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise Refusal(400, 'stream_options needs stream = true, and may be {"include_usage": true}', param="stream_options")
    if options.get("include_obfuscation"):
        raise Refusal(400, "stream_options.include_obfuscation is not supported; leave it out", param="stream_options")
    return _of_type(options, "include_usage", bool) or False


def _stop(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else stop if isinstance(stop, list) else [stop]
    texts = tuple(_text(text, "stop") for text in stops)
    if len(texts) > _MAX_STOPS or not all(0 < len(text) <= _MAX_STOP_CHARACTERS for text in texts):
        raise Refusal(
            400, f"stop is {_shown(stop)}; give at most {_MAX_STOPS} texts of 1 to {_MAX_STOP_CHARACTERS} characters", param="stop"
        )
    return texts


def _max_tokens(asked: Mapping[str, Any]) -> int | None:
    given = {name: _of_type(asked, name, int) for name in ("max_tokens", "max_completion_tokens") if name in asked}
    if len(set(given.values())) > 1:
        raise Refusal(400, "max_tokens and max_completion_tokens differ; give one of them", param="max_tokens")
    for name, value in given.items():
        if value is None or value < 1:
            raise Refusal(400, f"{name} is {_shown(value)}; give a whole number from 1", param=name)
    return next(iter(given.values()), None)


def _sampling(asked: Mapping[str, Any]) -> Sampling | None:
    """Return how tokens are drawn; None where the likeliest are taken, at temperature 0, which is the default here."""
    temperature, top_p = _number(asked, "temperature", 0.0, 2.0), _number(asked, "top_p", 0.0, 1.0)
    seed = _of_type(asked, "seed", int)
    if seed is not None and not -(1 << 63) <= seed < 1 << 63:
        raise Refusal(400, f"seed is {_shown(seed)}; give a whole number of 64 bits", param="seed")
    if temperature is None and top_p is not None and top_p < 1.0:
        raise Refusal(400, "top_p changes nothing at temperature 0, the default here; give a temperature, too", param="top_p")
    if not temperature:
        return None
    return Sampling(temperature, 1.0 if top_p is None else top_p, secrets.randbits(63) if seed is None else seed)


def _number(asked: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = asked.get(name)
    if value is None:
        return None
    # A boolean is an int in Python; an integer may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or not math.isfinite(value):
        raise Refusal(400, f"{name} is {_shown(value)}; give a number from {least:g} to {most:g}", param=name)
    return float(value)


def _of_type(asked: Mapping[str, Any], name: str, kind: type) -> Any:
    value = asked.get(name)
    if value is not None and type(value) is not kind:
        word = {bool: "true or false", int: "a whole number"}[kind]
        raise Refusal(400, f"{name} is {_shown(value)}; give {word}", param=name)
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise Refusal(400, f"{place} is {_shown(value)}, not text", param=place)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise Refusal(400, f"{place} has half a character at {problem.start} (a lone surrogate)", param=place) from problem
    return value


def _shown(value: Any) -> str:
    """Return a value as a message may show it: short, and what people said not at all."""
    if isinstance(value, str):
        return ascii(value[:40])
    if isinstance(value, bool | float) or value is None or (isinstance(value, int) and abs(value) < 1 << 64):
        return json.dumps(value)
    return f"a {type(value).__name__}" if not isinstance(value, int) else "a huge number"
