"""A judge through MLflow's judge interface, at any address that speaks OpenAI's chat completions, local ones included."""

import os
import re
import socket
from json import JSONDecodeError
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from mlflow.exceptions import MlflowException

from clusterlora.errors import ServiceDown
from clusterlora.ports.judge import AnswerPair, Preference
from clusterlora.values import digest

_INSTRUCTIONS = (
    "A person asked an assistant what stands in {{ inputs }}. In {{ outputs }} are two answers, first and second. {{ expectations }} "
    "holds what this person was really answered. Say which of the two serves this person better, by that answer: what it does, what it "
    "says, and its manner. Length and order are no reasons. Reply tie where they serve the person alike, and abstain where you cannot tell."
)
_PATH = "/chat/completions"
_WORDS = ("first", "second", "tie", "abstain")


class MlflowJudge:
    """The judge of an address. Its key, where it asks for one, is OPENAI_API_KEY in the environment."""

    def __init__(self, address: str, model: str) -> None:
        from mlflow.genai.judges import make_judge  # imported late: it takes seconds

        # MLflow refuses to ask without a key; a local server wants none.
        os.environ.setdefault("OPENAI_API_KEY", "none")
        self._address, self._model = address, model
        self._judge: Any = make_judge(
            name="preference",
            instructions=_INSTRUCTIONS,
            model=f"openai:/{model}",
            feedback_value_type=Literal["first", "second", "tie", "abstain"],
            base_url=address.rstrip("/").removesuffix(_PATH) + _PATH,
            inference_params={"temperature": 0.0},
        )

    @property
    def identity(self) -> str:
        """See `Judge`."""
        return f"{self._model} at {self._address} (instructions {digest(_INSTRUCTIONS, length=4)})"

    def prefer(self, pair: AnswerPair) -> Preference:
        """See `Judge`."""
        self._refuse_nobody()
        try:
            said = self._judge(
                inputs={"asked": pair.prompt}, outputs={"first": pair.first, "second": pair.second}, expectations={"answer": pair.reference}
            )
        except (LookupError, TypeError, AttributeError):
            return "unusable"  # an empty reply, or JSON without a result: MLflow reads both unchecked
        except (MlflowException, OSError, ValueError) as error:
            if isinstance(error.__cause__, JSONDecodeError):
                return _preference(error.__cause__.doc)
            if getattr(error.__cause__, "is_context_window_error", False):
                return "unusable"  # this pair is too long for the model; others may not be
            raise self._down(error) from error
        return _preference(said.value)

    def _refuse_nobody(self) -> None:
        """Refuse an address at which nobody listens: MLflow would try again for minutes. Behind a proxy that cannot be told here."""
        if getproxies():
            return
        there = urlsplit(self._address)
        try:
            socket.create_connection((there.hostname or "", there.port or (443 if there.scheme == "https" else 80)), timeout=10).close()
        except OSError as error:
            raise self._down(error) from error

    def _down(self, why: object) -> ServiceDown:
        words = str(why).strip().splitlines() or ["it said nothing"]
        return ServiceDown(
            f"the judge {self._model} at {self._address} does not answer ({words[0][:200]}); "
            "mend that and compare again: what it has answered is kept"
        )


def _preference(said: object) -> Preference:
    """Return the preference that a reply says in one word, whatever its case and punctuation."""
    word = re.sub(r"[\W_]+", " ", str(said)).strip().casefold()
    return cast("Preference", word) if word in _WORDS else "unusable"
