"""A tokenizer's chat template, and what its own renderings tell about it.

No template is parsed or known by name. Every turn's words are replaced by a placeholder, the template renders that, and the words are put
back: what the template adds around them is then known exactly, and no words can be taken for the template's.
"""

import copy
import hashlib
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING

from clusterlora.chat.control import ControlTokens
from clusterlora.chat.lead import REASONING, lead_of, opened_before_answers
from clusterlora.chat.source import frozen_source
from clusterlora.chat.steps import EndlessTemplate, bounded
from clusterlora.errors import BadData, ModelUnavailable, counted
from clusterlora.values import Role, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNDEFINED = re.compile(r"'(\w+_token)' is undefined")
"""What Jinja says of a token that the tokenizer has no name for."""

_Shape = tuple[tuple[Role, str, str], ...]
"""A conversation without its words: role, leading and trailing white space of every turn. Renderings depend on nothing else."""
_MAX_SHAPES, _MAX_TURNS, _MAX_MARGINS = 256, 64, 1000
"""Renderings that are kept, the latest used; of conversations of at most so many turns and characters of white space around them."""
_MOMENTS = (datetime(2001, 1, 1), datetime(2012, 12, 30, 13, 47, 59, 123456))  # noqa: DTZ001  (strftime of a template knows no zone)
"""Two moments of which nothing is alike that a template may write, not even the day of the week."""
_SYSTEM: tuple[Role, str, str] = ("system", "", "")
_USER: tuple[Role, str, str] = ("user", "", "")
_ASSISTANT: tuple[Role, str, str] = ("assistant", "", "")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of rendered text. `is_data` says that somebody said it; otherwise the template wrote it."""

    text: str
    is_data: bool


class ChatTemplate:
    """Renders conversations as the template does, the words of every turn apart from what the template writes.

    Turns are fitted to what the template takes: without a system role the system text leads the first user turn, and where turns must
    alternate those of one side in a row become one.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", arguments: Sequence[tuple[str, str]] = (), date: str | datetime | None = None
    ) -> None:
        """Read off what the template does.

        Args:
            arguments: pairs (name, value) that the template is given; values are JSON where they can be read so.
            date: what the template takes for today, as YYYY-MM-DD, or for the present; None is the moment of the rendering.

        Raises:
            ModelUnavailable: there is no template, it cannot be rendered, or has no end of turn.
        """
        self._tokenizer = tokenizer
        self.source = frozen_source(template_source(tokenizer), arguments, date)
        # A template cannot write this number itself: it is made from its own source.
        self._mark = str(int(hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10**12)
        self._placeholder = re.compile(f"\ue000{self._mark}:(\\d+)\ue000")
        self._parts_by_shape: OrderedDict[tuple[_Shape, bool], list[str | int]] = OrderedDict()
        written = "".join(str(part) for part in self._render((_USER, _ASSISTANT, _USER), generation=True))
        self.control = ControlTokens(_control_tokens(tokenizer, self.source + written))
        self.has_system_role = self._takes((_SYSTEM, _USER))
        self.needs_alternation = not self._takes((_USER, _USER)) or not self._takes((_USER, _ASSISTANT, _ASSISTANT, _USER))
        self.may_begin_with_assistant = self._takes((_ASSISTANT, _USER))
        self._further_end = ""
        """What follows the first token of a turn's end that has several, up to its last one."""
        self.next_header = ""
        """The token that begins the next turn, where an answer ends with nothing but that; empty where it has an end of its own."""
        self._default_end = self._end()
        self.end_token: str = self.control.last(self._default_end)
        """The token that ends an assistant's turn."""
        self.end_tokens: frozenset[str] = frozenset({self.end_token, self.control.last(self.control.through_first(self._default_end))})
        """The tokens after which an assistant says no more: the last one of the end of a turn, and its first one."""

    def accepted(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """Return the turns as the template takes them: the same where it takes every role in every order."""
        fitted = merged(turns) if self.needs_alternation else tuple(turns)
        if self.has_system_role or not fitted or fitted[0].role != "system":
            return fitted
        system, *others = fitted
        first = next((i for i, turn in enumerate(others) if turn.role == "user"), None)
        if first is None:
            raise BadData("the chat template has no system role, and there is no user turn to put the system text into")
        if system.text:
            others[first] = Turn("user", f"{system.text}\n\n{others[first].text}")
        return tuple(others)

    def prompt(self, turns: Sequence[Turn]) -> tuple[Span, ...]:
        """Return the rendering up to where the assistant's next turn begins."""
        fitted = self.accepted(turns)
        parts = self._render(_shape(fitted), generation=True)
        if left_out := [turn.role for i, turn in enumerate(fitted) if i not in parts]:
            raise ModelUnavailable(
                f"the chat template of {named(self._tokenizer)} leaves out the {left_out[0]} turn of a dialogue; use a base that keeps it"
            )
        return _filled(parts, fitted)

    def response(self, turns: Sequence[Turn], text: str) -> tuple[Span, ...]:
        """Return what the template makes of an assistant's turn after these: what leads its words, the words, and the end of the turn."""
        fitted = self.accepted(turns)
        shape = _shape(fitted)
        whole = (*shape, *_shape((Turn("assistant", text),)))
        number = len(shape)
        prompt, dialogue = self._render(shape, generation=True), self._render(whole, generation=False)
        if number not in dialogue:
            raise ModelUnavailable(
                f"the chat template of {named(self._tokenizer)} leaves out the answer; use a base whose template keeps it"
            )
        at = dialogue.index(number)
        lead = lead_of(_after_last_placeholder(prompt), _after_last_placeholder(dialogue[:at]))
        end = self._cut_tail(dialogue[at + 1 :]) or self._default_end
        return _joined((Span(lead, is_data=False), Span(text.strip(), is_data=True), Span(end, is_data=False)))

    def _takes(self, shape: _Shape) -> bool:
        try:
            rendered = self._render(shape, generation=shape[-1][0] == "user")
        except ModelUnavailable:
            return False
        return set(range(len(shape))) <= set(rendered)

    def _render(self, shape: _Shape, *, generation: bool) -> list[str | int]:
        """Return the template's text in parts: what it writes, and by its number each turn whose words stand there."""
        key = (shape, generation)
        if key in self._parts_by_shape:
            self._parts_by_shape.move_to_end(key)
            return self._parts_by_shape[key]
        messages = [{"role": role, "content": f"{lead}\ue000{self._mark}:{i}\ue000{trail}"} for i, (role, lead, trail) in enumerate(shape)]
        # The words count for nothing here: what is rendered with them has been rendered so.
        with bounded(len(shape), sum(len(message["content"]) for message in messages)):
            text = render(self._tokenizer, messages, self.source, generation=generation)
        parts = [int(part) if i % 2 else part for i, part in enumerate(self._placeholder.split(text))]
        if len(shape) <= _MAX_TURNS and sum(len(lead) + len(trail) for _, lead, trail in shape) <= _MAX_MARGINS:
            self._parts_by_shape[key] = parts
            if len(self._parts_by_shape) > _MAX_SHAPES:
                self._parts_by_shape.popitem(last=False)
        return parts

    def _cut_tail(self, tail: Sequence[str | int]) -> str:
        """Return what follows an assistant's words up to the token that ends the turn; empty where no such token follows."""
        text = str(tail[0]) if tail else ""
        first = self.control.through_first(text)
        return first + self._further_end if text.startswith(self._further_end, len(first)) else first

    def _end(self) -> str:
        """Return the end of a turn after which nothing comes, of one that a user's turn follows, or the tokenizer's end of a text."""
        tail = self._render((_USER, _ASSISTANT), generation=False)[4:]
        parts = self._render((_USER, _ASSISTANT, _USER), generation=False)
        if self._cut_tail(tail):
            between = str(parts[4]) if parts[1::2] == [0, 1, 2] else ""
            self._further_end = self._further(str(tail[0])[: _n_common(str(tail[0]), between)], str(parts[0]))
            return self._cut_tail(tail).lstrip()
        if not {0, 1, 2} <= set(parts):
            raise ModelUnavailable(
                f"the chat template of {named(self._tokenizer)} leaves out turns: of a question, an answer and another question it writes "
                f"{len({0, 1, 2} & set(parts))}; mend chat_template.jinja"
            )
        before, _, _, _, between, *_ = map(str, parts)
        # What stands before every user turn is the header of a user turn, not the end of the turn before.
        n_end = self.control.uncut(between, len(between) - _n_common(before[::-1], between[::-1]))
        ends = [end for end in (between[:n_end], self._end_before_either_side(before, between)) if self._cut_tail([end])]
        if ends:
            end = max(ends, key=lambda end: len(self._further(end, before)))
            self._further_end = self._further(end, before)
            return self._cut_tail([end]).lstrip()
        if self._tokenizer.eos_token:
            following = between.lstrip()
            header = self.control.through_first(following)
            self.next_header = header if header and self.control.last(header) == header else ""
            return str(self._tokenizer.eos_token)
        raise ModelUnavailable(
            f"the chat template of {named(self._tokenizer)} ends no turn with a token, and the tokenizer has no eos_token; "
            "set eos_token in tokenizer_config.json"
        )

    def _further(self, end: str, before: str) -> str:
        """Return what an end holds after its first token: further tokens up to the one that begins the next turn, with white space between.

        Args:
            end: what stands after an answer whether it is the last turn or a user's turn follows: what is written after the last one alone,
                such as the end of the text, ends no turn.
            before: what stands before the first user turn.
        """
        begins_turn = self.control.through_first(before.removeprefix(str(self._tokenizer.bos_token or "")))
        further = passed = ""
        for text, is_control in self.control.split(end[len(self.control.through_first(end)) :]):
            passed += text
            if is_control and not begins_turn.endswith(text):
                further = passed
            elif is_control or not text.isspace():
                break
        return further

    def _end_before_either_side(self, before: str, between: str) -> str:
        """Return what follows an answer whichever side speaks next; empty where its first token begins a turn.

        What stands before every user turn holds the end of a turn as well where the template writes a system turn of its own.
        """
        try:
            prompted = _after_last_placeholder(self._render((_USER, _ASSISTANT), generation=True))
        except ModelUnavailable:
            return ""  # an answer is never asked for after another one
        common = between[: _n_common(between, prompted)]
        end = self.control.through_first(common)
        begins_turn = self.control.through_first(before.removeprefix(str(self._tokenizer.bos_token or "")))
        return "" if end and begins_turn.endswith(self.control.last(end)) else common

    def refuse_open_reasoning(self) -> None:
        """Check that no block of reasoning is open where an answer's words begin. Raises ModelUnavailable."""
        text = _after_last_placeholder(self._render((_USER,), generation=True))
        fix = "switch it off with model.template_arguments, where the template has an argument for it"
        for opens, closes in REASONING.items():
            if text.rfind(opens) > text.rfind(closes):
                raise ModelUnavailable(
                    f"the chat template of {named(self._tokenizer)} opens {opens} before every answer and does not close it: answers "
                    f"would be learnt as reasoning; {fix}, or end the template with {closes}"
                )
        answered = self._render((_USER, _ASSISTANT), generation=False)
        if answered[1:4:2] == [0, 1] and (more := opened_before_answers(text, str(answered[2]))):
            raise ModelUnavailable(
                f"the chat template of {named(self._tokenizer)} ends every prompt with {more!r}, which it does not write or closes before "
                f"answers of a dialogue: answers would be learnt as what follows that; {fix}, or mend chat_template.jinja"
            )


def writes_date(tokenizer: "PreTrainedTokenizerBase", arguments: Sequence[tuple[str, str]] = ()) -> bool:
    """Return whether a template asks for the time, whichever conversations it does so for. Raises as `frozen_source`."""
    one, other = (frozen_source(template_source(tokenizer), arguments, moment) for moment in _MOMENTS)
    return one != other


def ended_as_generated(tokenizer: "PreTrainedTokenizerBase", end_ids: Collection[int]) -> "PreTrainedTokenizerBase":
    """Return a tokenizer; with another `eos_token` where its template ends an answer with the header of the next turn alone.

    Models of such templates (GLM) write that header when an answer is complete, and their generation settings end answers by it.

    Args:
        end_ids: the ids that end an answer by the generation settings.
    """
    try:
        header = ChatTemplate(tokenizer).next_header
    except ModelUnavailable:
        return tokenizer  # told where it is used, with the template's arguments
    if not header or tokenizer.convert_tokens_to_ids(header) not in end_ids:
        return tokenizer
    ended = copy.deepcopy(tokenizer)
    ended.eos_token = header
    return ended


def merged(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns with those of one side in a row made one, a blank line between them."""
    merged_turns: list[Turn] = []
    for turn in turns:
        if merged_turns and merged_turns[-1].role == turn.role:
            merged_turns[-1] = Turn(turn.role, f"{merged_turns[-1].text}\n\n{turn.text}")
        else:
            merged_turns.append(turn)
    return tuple(merged_turns)


def render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, str]], source: str, *, generation: bool) -> str:
    """Return what a template makes of messages. Raises ModelUnavailable with the template's own words where it refuses them."""
    from jinja2 import TemplateSyntaxError, UndefinedError

    turns = list(messages)
    try:
        return str(tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False, add_generation_prompt=generation))
    except EndlessTemplate as error:
        raise ModelUnavailable(
            f"the chat template of {named(tokenizer)} has no end: {error} for {counted(len(turns), 'turn')}; mend chat_template.jinja"
        ) from error
    except TemplateSyntaxError as error:
        raise ModelUnavailable(
            f"the chat template of {named(tokenizer)} has an error in line {error.lineno} ({error.message}); mend chat_template.jinja"
        ) from error
    except Exception as error:
        lacking = _UNDEFINED.fullmatch(str(error)) if isinstance(error, UndefinedError) else None
        if lacking:
            raise ModelUnavailable(
                f"the chat template of {named(tokenizer)} writes {lacking[1]}, which the tokenizer does not have; set {lacking[1]} in "
                "tokenizer_config.json"
            ) from error
        roles = ", ".join(message["role"] for message in messages) or "nothing"
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelUnavailable(f"the chat template of {named(tokenizer)} refuses turns of {roles}: {why}") from error


def unread_arguments(tokenizer: "PreTrainedTokenizerBase", arguments: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names among a template's arguments that it never mentions. Raises ModelUnavailable where there is no template."""
    source = template_source(tokenizer)
    return [argument for argument, _ in arguments if not re.search(rf"\b{re.escape(argument)}\b", source)]


def template_source(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the source of the tokenizer's chat template. Raises ModelUnavailable where it has none."""
    if not tokenizer.chat_template:
        raise ModelUnavailable(f"base model {named(tokenizer)} has no chat template; use an instruction-tuned model")
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelUnavailable(f"base model {named(tokenizer)} has several chat templates, none of them named default; keep one") from error


def named(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what to call a tokenizer in a message."""
    return repr(tokenizer.name_or_path)


def _control_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> Iterator[str]:
    """Yield the tokens that words must not be read as: special ones, and added ones that the template writes or that enclose reasoning.

    Added tokens of white space are ordinary text, and so are those that only the vocabulary knows (Gemma's `<h1>`).
    """
    for token in tokenizer.added_tokens_decoder.values():
        is_reasoning = token.content in (*REASONING, *REASONING.values())
        if token.special or is_reasoning or (token.content in text and not token.content.isspace()):
            yield token.content


def _shape(turns: Sequence[Turn]) -> _Shape:
    return tuple((turn.role, *_margins(turn.text)) for turn in turns)


def _margins(text: str) -> tuple[str, str]:
    """Return a text's leading and trailing white space, which templates may trim."""
    words = text.strip()
    if not words:
        return text, ""
    lead = text[: text.index(words[0])]
    return lead, text[len(lead) + len(words) :]


def _filled(parts: Sequence[str | int], turns: Sequence[Turn]) -> tuple[Span, ...]:
    return _joined([Span(turns[part].text.strip(), is_data=True) if isinstance(part, int) else Span(part, is_data=False) for part in parts])


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    return tuple(span for span in spans if span.text)


def _n_common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _after_last_placeholder(parts: Sequence[str | int]) -> str:
    return str(parts[-1])
