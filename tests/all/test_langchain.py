"""LangChain's client talks to the server: answers, streams, several at once. It is no dependency; without it this is skipped."""

from typing import Any

import pytest

from clusterlora.ports.stores import Stores
from clusterlora.settings import Study
from tests.fixtures.serving import KEY, StudySource, asked_in_evaluation, running

pytestmark = pytest.mark.filterwarnings("ignore")


def test_langchains_client_gets_the_answers_of_evaluation(seven: Study, finished_stores: Stores) -> None:
    langchain: Any = pytest.importorskip("langchain_openai", reason="pip install langchain-openai", exc_type=ImportError)
    asked = asked_in_evaluation(seven, finished_stores)[:6]
    with running(StudySource(seven, finished_stores), n_slots=3) as (server, _):

        def model(body: dict[str, Any]) -> Any:
            return langchain.ChatOpenAI(
                model=f"{seven.name}/{body['user']}",
                base_url=f"http://127.0.0.1:{server.port}/v1",
                api_key=KEY,
                temperature=0,
                max_retries=0,
                extra_body={"context": body["context"]},
            )

        for one in asked:
            chat, messages = model(dict(one.body)), one.body["messages"]
            answer = chat.invoke(messages)
            assert answer.content == one.answer
            assert answer.usage_metadata["output_tokens"] > 0
            assert "".join(chunk.content for chunk in chat.stream(messages)) == one.answer
        first = asked[0]
        assert [a.content for a in model(dict(first.body)).batch([first.body["messages"]] * 3)] == [first.answer] * 3
        with pytest.raises(Exception, match="n = 3 is not supported"):
            model(dict(first.body)).bind(n=3).invoke(first.body["messages"])
