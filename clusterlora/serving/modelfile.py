"""What llama.cpp and Ollama are told of an export of GGUF adapters: a command, and a Modelfile for each adapter."""

import json
from collections.abc import Sequence

from clusterlora.chat.template import ChatTemplate, Span
from clusterlora.errors import BadData
from clusterlora.models.base import BaseModel
from clusterlora.serving.elsewhere import BASE_FOLDER
from clusterlora.stores.routing_table import RoutingTable
from clusterlora.values import Turn

_SYSTEM, _PROMPT = "{{ .System }}", "{{ .Prompt }}"


def llama_command(names: Sequence[str]) -> str:
    """Return a script that serves all adapters with llama.cpp, each asked for by its number."""
    adapters = "".join(f" \\\n    --lora adapters/{name}.gguf" for name in names)
    numbers = "".join(f"#   {number}  {name}\n" for number, name in enumerate(names))
    return (
        "#!/bin/sh\n"
        "# Run in this folder, with the base as base.gguf: `convert_hf_to_gguf.py base --outtype f32 --outfile base.gguf` of llama.cpp.\n"
        '# A request names its adapter as "lora": [{"id": NUMBER, "scale": 1.0}], and none for the base; routes.json says which is whose.\n'
        f"{numbers}"
        f"exec llama-server -m base.gguf --jinja --chat-template-file chat_template.jinja --temp 0 --lora-init-without-apply{adapters}\n"
    )


def modelfile(base: BaseModel, table: RoutingTable, adapter: str | None) -> str:
    """Return a Modelfile, from which `ollama create` makes a model that answers as the study does, of base and adapter.

    Its template is the base's own rendering of a system text, a question and an answer.

    Raises:
        BadData: template or system prompt hold what a Modelfile cannot.
        ModelUnavailable: the base's chat template refuses such turns.
    """
    template = ChatTemplate(base.tokenizer, table.model.template_arguments, table.model.template_date)
    # Each part is rendered with a word in its place, and what the template writes around it is kept.
    asked = (Turn("system", "system"), Turn("user", "question"))
    prompt = _text(template.prompt(asked), {"system": _SYSTEM, "question": _PROMPT})
    # Ollama writes the token that begins every text itself, where the tokenizer does.
    begins = base.tokenizer.bos_token
    if begins and base.tokenizer("x")["input_ids"][:1] == [base.tokenizer.bos_token_id]:
        prompt = prompt.removeprefix(str(begins))
    answer = _text(template.response(asked, "answer"), {"answer": "{{ .Response }}"})
    if '"""' in f"{prompt}{answer}{table.model.system_prompt}":
        raise BadData(
            'a Modelfile cannot hold a template or a system prompt with """ in it; change model.system_prompt, or use --format peft'
        )
    stop = base.tokenizer.convert_ids_to_tokens(sorted(base.end_ids))
    lines = [
        f"FROM ./{BASE_FOLDER}.gguf",
        *([f"ADAPTER ./{adapter}"] if adapter is not None else []),
        f'TEMPLATE """{prompt}{answer}"""',
        f'SYSTEM """{table.model.system_prompt}"""',
        "PARAMETER temperature 0",
        f"PARAMETER num_predict {table.max_new_tokens}",
        f"PARAMETER num_ctx {table.model.max_length + table.max_new_tokens}",
        *(f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in stop),
    ]
    return "\n".join(lines) + "\n"


def _text(spans: Sequence[Span], word_by_text: dict[str, str]) -> str:
    """Return rendered spans as one text, with what was said replaced by the words that stand for it."""
    text = ""
    for span in spans:
        part = span.text
        for said, word in word_by_text.items() if span.is_data else ():
            part = part.replace(said, word)
        text += part
    return text
