"""Any content of a model folder, a chat template, an adapter's folder or the servers' state is used, or refused in one printable line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clusterlora.adapters.import_checks import check_imported
from clusterlora.chat.encoder import PromptEncoder
from clusterlora.engine.base import BaseModel
from clusterlora.errors import ClusterLoraError
from clusterlora.models.base import HOMELM_FOLDER, base_revision, load_base, usable_base
from clusterlora.models.embedding import load_embedder
from clusterlora.models.fit import embedding_findings
from clusterlora.values import Turn
from deployments import services_state
from tests.fast.test_fuzz import SCALAR, fuzz, outcome_of, spoilt_bytes
from tests.fixtures.embedding_folders import write_embedding_folder
from tests.fixtures.imported import write_adapter

pytestmark = [pytest.mark.timeout(0)]
# Its parameter "many" is marked mark.all, which tests/conftest.py looks for in each file.
__all__ = ["fuzz"]

TURNS = (Turn("system", "Be brief."), Turn("user", "Light?"), Turn("assistant", "On."), Turn("user", "Off?"))
SETTINGS_OF_BASES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")
SETTINGS_OF_EMBEDDERS = ("config.json", "tokenizer_config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json")
VALUES = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(st.sampled_from(["a", "content", "rope_type"]), SCALAR, max_size=2)
DEEP = b"[" * 100_000
_HEADER = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e400]}}'
ENDLESS = len(_HEADER).to_bytes(8, "little") + _HEADER
"""Weights that end at infinity."""
BEYOND_MEMORY = {"num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "head_dim"}
"""Sizes: what a large one takes is no question of how it is refused."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(HOMELM_FOLDER, tmp_path_factory.mktemp("fuzz") / "base"))


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedding_folder(tmp_path_factory.mktemp("fuzz") / "embedding")


def use_base(folder: Path) -> None:
    base_revision(str(folder))
    PromptEncoder(usable_base(str(folder)).tokenizer, max_length=256).encode_messages(TURNS)


@st.composite
def changes(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """Draw other values of some settings; sizes stay small."""
    changed = draw(st.dictionaries(st.sampled_from(sorted(whole)), VALUES, min_size=1, max_size=2))
    return {name: value for name, value in changed.items() if not (name in BEYOND_MEMORY and isinstance(value, int) and value > 10_000)}


@pytest.mark.whole
@pytest.mark.parametrize("name", SETTINGS_OF_BASES)
def test_any_settings_of_a_base_model_are_used_or_refused(name: str, whole: Path, fuzz: settings) -> None:
    original = (HOMELM_FOLDER / name).read_bytes()
    values = json.loads(original)

    @fuzz
    @given(changes(values).map(lambda changed: json.dumps({**values, **changed}).encode()) | spoilt_bytes(original))
    @example(DEEP)
    def case(content: bytes) -> None:
        (whole / name).write_bytes(content)
        outcome_of(lambda: use_base(whole), refusals=ClusterLoraError)

    try:
        case()
    finally:
        (whole / name).write_bytes(original)


@pytest.mark.whole
@pytest.mark.parametrize("name", SETTINGS_OF_EMBEDDERS)
def test_any_settings_of_an_embedding_model_are_used_or_refused(name: str, embedding: Path, fuzz: settings) -> None:
    original = (embedding / name).read_bytes()
    values = json.loads(original)
    others = changes(values).map(lambda new: {**values, **new}) if isinstance(values, dict) else VALUES

    @fuzz
    @given(others.map(lambda other: json.dumps(other).encode()) | spoilt_bytes(original))
    @example(DEEP)
    @example(json.dumps({"unk_token": ""}).encode())
    def case(content: bytes) -> None:
        (embedding / name).write_bytes(content)
        outcome_of(lambda: embedding_findings(str(embedding), ["a text"], is_headline=True), refusals=ClusterLoraError)
        outcome_of(lambda: load_embedder(str(embedding)), refusals=ClusterLoraError)

    try:
        case()
    finally:
        (embedding / name).write_bytes(original)


PIECES = st.lists(
    st.sampled_from(
        [
            *(
                "{% for m in messages %}",
                "{% endfor %}",
                "{% if add_generation_prompt %}",
                "{% endif %}",
                "{{ m.content }}",
                "{{ m['role'] }}",
            ),
            *("{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}", "{{ m.content.strip() }}", "<|end|>", "<|user|>"),
            *(
                "{{ eos_token }}",
                "{% set x = m %}",
                "{{ x.y.z }}",
                "{{ range(10 ** 9) }}",
                "{{ m | tojson }}",
                "{% include 'a' %}",
                "\n",
                "{%",
            ),
            *("{{ ''.__class__.__mro__ }}", "{{ strftime_now('%Y') }}", "{{ m.content[0] }}", "{{ m.content * 3 }}", "{{ none() }}"),
        ]
    ),
    max_size=12,
)


@pytest.mark.whole
def test_any_chat_template_is_used_or_refused(whole: Path, fuzz: settings) -> None:
    original = (HOMELM_FOLDER / "chat_template.jinja").read_bytes()

    @fuzz
    @given(PIECES.map("".join).map(str.encode) | spoilt_bytes(original))
    @example(b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    @example(b"{% for m in messages %}{{ m.content * 100000 }}{% endfor %}")
    def case(content: bytes) -> None:
        (whole / "chat_template.jinja").write_bytes(content)
        outcome_of(lambda: use_base(whole), refusals=ClusterLoraError)

    try:
        case()
    finally:
        (whole / "chat_template.jinja").write_bytes(original)


@pytest.mark.whole
def test_any_adapter_is_imported_or_refused(tiny_base_folder: Path, tmp_path: Path, fuzz: settings) -> None:
    base: BaseModel = load_base(str(tiny_base_folder))
    folder = write_adapter(tmp_path / "theirs", tiny_base_folder)
    config, weights = ((folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors"))
    values = json.loads(config)

    @fuzz
    @given(changes(values).map(lambda changed: json.dumps({**values, **changed}).encode()) | spoilt_bytes(config), spoilt_bytes(weights))
    @example(DEEP, ENDLESS)
    def case(new_config: bytes, new_weights: bytes) -> None:
        for its_config, its_weights in ((new_config, weights), (config, new_weights)):
            (folder / "adapter_config.json").write_bytes(its_config)
            (folder / "adapter_model.safetensors").write_bytes(its_weights)
            outcome_of(lambda: check_imported(folder, base, any_base=False), refusals=ClusterLoraError)

    case()


def test_any_state_of_the_servers_is_read_or_called_damaged(tmp_path: Path, fuzz: settings) -> None:
    services_state.ServicesState(users={"study demo": services_state.this_process()}).save(tmp_path)
    original = (tmp_path / "stack.json").read_bytes()
    values = json.loads(original)

    @fuzz
    @given(changes(values).map(lambda changed: json.dumps({**values, **changed}).encode()) | spoilt_bytes(original))
    def case(content: bytes) -> None:
        (tmp_path / "stack.json").write_bytes(content)
        outcome_of(lambda: services_state.load(tmp_path).running(), refusals=ClusterLoraError)

    case()


@pytest.mark.parametrize("odd", ["\\ud800", "\\u001b[2J"])
@pytest.mark.parametrize("name", ["base_model_name_or_path", "revision", "target_modules", "task_type", "rank_pattern", "new"])
def test_a_refused_adapter_is_named_in_words_that_can_be_printed(name: str, odd: str, tiny_base_folder: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base_folder))
    folder = write_adapter(tmp_path / "theirs", tiny_base_folder)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    for value in (odd, [odd], {odd: 4}, {f"(?{odd}": 4}):
        text = json.dumps({**config, name: value}).replace("\\\\u", "\\u")
        (folder / "adapter_config.json").write_text(text)
        outcome_of(lambda: check_imported(folder, base, any_base=False), refusals=ClusterLoraError)
