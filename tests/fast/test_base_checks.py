"""A base model, its chat template and the data are checked together before anything is trained or recorded."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.cli import main
from clusterlora.data.lengths import ExampleLength, covering
from clusterlora.data.prompts import prompt_encoder
from clusterlora.engine.base import frozen_base
from clusterlora.errors import BadData, BadSettings, ModelUnavailable
from clusterlora.models.base import HOMELM_FOLDER, base_revision, load_base
from clusterlora.models.checks import known_positions, refuse_too_long
from clusterlora.models.revision import is_same_base
from clusterlora.planning.study_state import read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import DataSettings, EvaluationSettings, Lengths, ModelSettings, Study
from clusterlora.stages import base_checks
from clusterlora.stages.prepare import prepare_study, provenance
from clusterlora.stores.resume import as_decided
from clusterlora.values import Clustering, Turn
from tests.fixtures.stages import Notes

HOMELM_TEMPLATE = (HOMELM_FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
DATED = "<|system|>Today is {{ strftime_now('%d %b %Y') }}.<|end|>" + HOMELM_TEMPLATE
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + HOMELM_TEMPLATE
ALTERNATING = (
    "{% for m in messages if m['role'] != 'system' %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + HOMELM_TEMPLATE
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HOMELM_FOLDER, tmp_path / "base"))


def edit(file: Path, **changes: Any) -> None:
    """Set some values of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def exchanges(n: int = 4, *people: str) -> list[dict[str, Any]]:
    return [
        {"persona_id": name, "dialogue_id": f"d{i}", "prompt": f"light {i}, please", "response": f"light {i} is on for {name}."}
        for name in people or ("ann", "bob")
        for i in range(n)
    ]


def study(base: Path, data: Path, *, on_problem: Literal["refuse", "skip"] = "refuse", max_length: int = 256) -> Study:
    settings = DataSettings(source="table", path=str(data), train=1, val=1, test=1, on_problem=on_problem)
    return Study(name="small", data=settings, model=ModelSettings(base=str(base), max_length=max_length, dtype="float32"))


def without_layer_1(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def with_more_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights are missing": (without_layer_1, r"lacks model\.layers\.1\.input_layernorm\.weight.* and 6 more, and they would be random"),
    "weights are left over": (
        lambda folder: edit(folder / "config.json", num_hidden_layers=1),
        r"also holds model\.layers\.1\.\S+, .* would be left out",
    ),
    "weights are of another shape": (
        lambda folder: edit(folder / "config.json", vocab_size=2048),
        r"has of another shape model\.embed_tokens\.weight, and they would be random numbers",
    ),
    "an adapter lies beside the weights": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        r"also holds an adapter \(adapter_config\.json\).*merge_and_unload",
    ),
    "it classifies": (
        lambda folder: edit(folder / "config.json", architectures=["LlamaForSequenceClassification"]),
        r"is a LlamaForSequenceClassification .*predicts no next token",
    ),
    "it is an encoder": (lambda folder: edit(folder / "config.json", architectures=["BertModel"]), "is a BertModel"),
    "it is an encoder-decoder": (lambda folder: edit(folder / "config.json", is_encoder_decoder=True), "is an encoder-decoder"),
    "it sees": (lambda folder: edit(folder / "config.json", vision_config={"a": 1}), r"reads more than text \(vision_config"),
    "tokens have no embedding": (with_more_tokens, r"has 1025 tokens, the model's embedding 1024: .*resize_token_embeddings"),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template; use an instruction-tuned model"),
    "a template that does not parse": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for m in messages %}"),
        r"has an error in line 1 \(.*mend chat_template\.jinja",
    ),
    "reasoning is left open": (
        lambda folder: (folder / "chat_template.jinja").write_text(HOMELM_TEMPLATE.replace("<|assistant|>", "<|assistant|><think>\n")),
        "opens <think> before every answer",
    ),
    "its configuration is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_base_that_cannot_be_right_is_refused_in_one_line_and_nothing_is_recorded(
    what: str, folder: Path, stores: Stores, tmp_path: Path
) -> None:
    spoil, message = REFUSED[what]
    spoil(folder)
    with pytest.raises(ModelUnavailable, match=message) as refusal:
        prepare_study(study(folder, write_rows(tmp_path / "a.jsonl", exchanges())), stores, SilentLog())
    assert "\n" not in str(refusal.value)
    assert list(stores.studies.studies()) == []


def test_a_checkpoint_that_is_not_whole_is_not_loaded_by_anybody(folder: Path) -> None:
    without_layer_1(folder)
    with pytest.raises(ModelUnavailable, match="lacks"):
        load_base(str(folder))


def test_positions_beyond_the_short_factors_of_a_rotation_are_none_for_their_rotation_depends_on_the_batch() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4}
    scaled = Phi3Config(max_position_embeddings=131072, original_max_position_embeddings=4096, rope_parameters=rope)
    assert known_positions(scaled) == 4096
    assert known_positions(Phi3Config(max_position_embeddings=8192)) == 8192


def test_prompt_and_answer_must_fit_into_the_positions_of_the_base(folder: Path, stores: Stores, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", exchanges())
    edit(folder / "config.json", max_position_embeddings=300)
    asked = replace(study(folder, data), evaluation=EvaluationSettings(max_new_tokens=64))
    with pytest.raises(BadSettings, match=r"exceed the 300 positions of base model .*lower model\.max_length to 236 at most"):
        prepare_study(asked, stores, SilentLog())
    prepare_study(replace(asked, model=replace(asked.model, max_length=236)), stores, SilentLog())


def test_no_limit_is_advised_that_the_settings_refuse() -> None:
    advice = r"lower model\.max_length to 32 and evaluation\.max_new_tokens to 18 at most"
    with pytest.raises(BadSettings, match=advice):
        refuse_too_long("small", 50, max_length=256, max_new_tokens=64)
    refuse_too_long("small", 50, max_length=32, max_new_tokens=18)
    with pytest.raises(BadSettings, match=r"knows 20 positions, fewer than the 32 .*use another base model"):
        refuse_too_long("small", 20, max_length=32, max_new_tokens=4)


def test_lengths_read_off_the_data_leave_a_prompt_where_the_base_knows_few_positions() -> None:
    examples = [ExampleLength(prompt=10, without_history=10, answer=30, is_train=True)]
    assert covering(examples, n_positions=50, n_in_memory=None) == Lengths(32, 18)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
        ("config.json", {"rms_norm_eps": 1e-5}),
        ("generation_config.json", {"eos_token_id": [1, 0]}),
        ("tokenizer_config.json", {"eos_token": "<|pad|>"}),
        ("tokenizer.json", {"truncation": None}),
        ("chat_template.jinja", "{{ ' ' }}"),
        ("special_tokens_map.json", "{}"),
    ],
)
def test_every_file_that_changes_what_a_base_answers_changes_its_revision(file: str, change: dict[str, Any] | str, folder: Path) -> None:
    assert base_revision(str(folder)) == base_revision("homelm")
    path = folder / file
    if isinstance(change, str):
        path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + change, encoding="utf-8")
    elif file == "tokenizer.json":
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    else:
        edit(path, **change)
    revision = base_revision(str(folder))
    assert revision != base_revision("homelm")
    assert is_same_base(base_revision("homelm"), revision), "what was registered under the weights alone is still served"
    assert not is_same_base(revision, base_revision("homelm"))


def test_who_wrote_a_configuration_and_what_lies_beside_it_changes_nothing(folder: Path) -> None:
    edit(folder / "config.json", transformers_version="9.9", _name_or_path="elsewhere")
    (folder / "README.md").write_text("hello")
    assert base_revision(str(folder)) == base_revision("homelm")


def test_arguments_and_date_of_the_template_are_part_of_an_adapters_cache_key(folder: Path, stores: Stores, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", exchanges())
    keys = []
    models: tuple[tuple[str, dict[str, Any]], ...] = (
        ("a", {}),
        ("b", {"template_arguments": (("x", "1"),)}),
        ("c", {"template_date": "2026-01-01"}),
    )
    for name, model in models:
        one = replace(study(folder, data), name=name)
        one = replace(one, model=replace(one.model, **model))
        dataset = prepare_study(one, stores, SilentLog())
        stores.studies.save_clustering(name, Clustering("given", (dataset.ids,)))
        keys.append(work_plan(read_state(name, stores)).keys["unified"])
    assert len(set(keys)) == 3


def test_the_date_of_a_template_is_the_one_on_which_the_study_was_prepared_first(
    folder: Path, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, datetime

    class Clock(datetime):
        today_is = 1

        @classmethod
        def now(cls, tz: Any = None) -> Any:  # noqa: ARG003
            return datetime(2026, 11, cls.today_is, tzinfo=UTC)

    monkeypatch.setattr(base_checks, "datetime", Clock)
    (folder / "chat_template.jinja").write_text(DATED)
    asked = study(folder, write_rows(tmp_path / "a.jsonl", exchanges()))
    prepare_study(asked, stores, SilentLog())
    Clock.today_is = 28
    prepare_study(asked, stores, SilentLog())
    kept = stores.studies.study("small")
    assert kept.model.template_date == "2026-11-01"
    assert as_decided(asked, kept) == kept
    tokenizer = load_base(str(folder)).tokenizer
    assert "Today is 01 Nov 2026." in str(
        tokenizer.decode(list(prompt_encoder(tokenizer, kept.model).encode_messages([Turn("user", "hi")])))
    )


def test_a_template_without_the_date_leaves_the_study_without_one(folder: Path, stores: Stores, tmp_path: Path) -> None:
    prepare_study(study(folder, write_rows(tmp_path / "a.jsonl", exchanges())), stores, SilentLog())
    assert stores.studies.study("small").model.template_date is None


def test_a_dialogue_that_is_too_long_names_itself_or_is_left_out_and_counted(folder: Path, stores: Stores, tmp_path: Path) -> None:
    rows = exchanges(5)
    rows[2]["response"] = "on " * 300
    data = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        BadData, match=r"a\.jsonl:3: persona 'ann', dialogue 'd2/\w+': \d+ tokens of .*max_length = 256; .*data\.on_problem=skip"
    ):
        prepare_study(study(folder, data), stores, SilentLog())
    log = Notes()
    dataset = prepare_study(study(folder, data, on_problem="skip"), stores, log)
    assert not any("on on" in turn.text for persona in dataset.personas for dialogue in persona.dialogues for turn in dialogue.turns)
    assert "1 of 10 dialogues cannot be asked of the base model and are left out" in log.notes
    assert provenance("small", stores).n_dialogues_left_out == 1


def test_where_the_sides_must_alternate_their_turns_are_merged_and_dialogues_that_begin_with_the_assistant_refused(
    folder: Path, stores: Stores, tmp_path: Path
) -> None:
    (folder / "chat_template.jinja").write_text(ALTERNATING)
    said = ("user", "light"), ("user", "now"), ("assistant", "Sure."), ("assistant", "It is on.")
    messages = [{"role": role, "content": text} for role, text in said]
    rows = [
        {"persona_id": name, "dialogue_id": f"d{i}", "messages": [*messages, {"role": "user", "content": f"{name} {i}"}]}
        for name in ("ann", "bob")
        for i in range(3)
    ]
    dataset = prepare_study(study(folder, write_rows(tmp_path / "a.jsonl", rows)), stores, SilentLog())
    turns = dataset.personas[0].dialogues[0].turns
    assert turns[:2] == (Turn("user", "light\n\nnow"), Turn("assistant", "Sure.\n\nIt is on."))
    rows[0]["messages"] = [{"role": "assistant", "content": "Hello!"}, *messages]
    with pytest.raises(BadData, match=r"dialogue 'd0': begins with the assistant, and the chat template .* wants the user to begin"):
        prepare_study(replace(study(folder, write_rows(tmp_path / "b.jsonl", rows)), name="other"), stores, SilentLog())


def test_a_template_without_a_system_role_and_arguments_that_it_does_not_read_are_told_once(
    folder: Path, stores: Stores, tmp_path: Path
) -> None:
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    log = Notes()
    made = study(folder, write_rows(tmp_path / "a.jsonl", exchanges()))
    misspelt = (("add_generation_prompt", "true"), ("enable_thinkng", "false"))
    prepare_study(replace(made, model=replace(made.model, template_arguments=misspelt)), stores, log)
    assert log.notes.count("the chat template has no system role: the system text leads the first user turn") == 1
    assert log.notes.count(f"warning: model.template_arguments: the chat template of {folder} never mentions enable_thinkng") == 1


def test_a_template_that_changes_words_is_refused_with_the_first_difference(folder: Path, stores: Stores, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text(HOMELM_TEMPLATE.replace("message.content", "message.content | replace('please', 'PLEASE')"))
    with pytest.raises(BadData, match=r"changes what is said in dialogue 'd0/\w+' of persona 'ann': after '.*light 0, ' it writes 'PLEASE"):
        prepare_study(study(folder, write_rows(tmp_path / "a.jsonl", exchanges())), stores, SilentLog())


def test_words_that_a_template_drops_are_found_in_whichever_dialogue_they_stand(folder: Path, stores: Stores, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text(HOMELM_TEMPLATE.replace("message.content", "message.content.split('</think>')[-1]"))
    rows = exchanges(3)
    said = (("user", "light"), ("assistant", "<think>hm</think>on"), ("user", "and the heating"), ("assistant", "off"))
    rows[-1] = {"persona_id": "bob", "dialogue_id": "last", "messages": [{"role": role, "content": text} for role, text in said]}
    data = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(BadData, match=r"changes what is said in dialogue 'last' of persona 'bob'"):
        prepare_study(study(folder, data), stores, SilentLog())


def test_what_is_left_out_however_long_the_limits_does_not_raise_them(folder: Path, stores: Stores, tmp_path: Path) -> None:
    edit(folder / "config.json", max_position_embeddings=300)
    rows, settings = exchanges(6), {}
    for name, answer in (("short", "on"), ("long", "on " * 400)):
        rows[2]["response"] = answer
        asked = replace(study(folder, write_rows(tmp_path / f"{name}.jsonl", rows), on_problem="skip"), name=name)
        prepare_study(replace(asked, model=replace(asked.model, max_length=None)), stores, SilentLog())
        prepared = stores.studies.study(name)
        settings[name] = prepared.model.max_length, prepared.evaluation.max_new_tokens
    assert settings["long"] == settings["short"]
    assert settings["short"][0] < 300 - settings["short"][1]


def test_validate_refuses_a_template_that_changes_words(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "chat_template.jinja").write_text(HOMELM_TEMPLATE.replace("message.content", "message.content | replace('please', 'PLEASE')"))
    data = write_rows(tmp_path / "a.jsonl", exchanges())
    assert main(["data", "validate", "--data", str(data), "--base-model", str(folder), "--dialogues", "3"]) == 1
    shown = capsys.readouterr()
    assert "changes what is said in dialogue" in shown.err
    assert "examples too long" in shown.out, "what can be counted is counted all the same"


def test_every_id_that_may_end_an_answer_does(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token="<|pad|>")
    edit(folder / "generation_config.json", eos_token_id=[3])
    base = load_base(str(folder))
    assert base.end_ids == {0, 1, 3}, "the tokenizer's end of a text, the end of a turn in the template, the generation settings'"


def test_an_answer_ends_with_the_header_of_the_next_turn_where_generation_ends_so_and_the_template_has_no_end(folder: Path) -> None:
    headers = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (folder / "chat_template.jinja").write_text(headers)
    said = (Turn("user", "hi"), Turn("assistant", "yes"), Turn("user", "ok"), Turn("assistant", "no"))
    expected = {1: (["yes<|end|>", "no<|end|>"], 2), 2: (["yes<|user|>", "no<|user|>"], 1)}
    for n_ends, (learnt, n_sequences) in expected.items():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|user|>")][:n_ends]
        edit(folder / "generation_config.json", eos_token_id=ends)
        base = load_base(str(folder))
        assert base.end_ids == set(ends)
        encoder = PromptEncoder(base.tokenizer, max_length=128)
        turns = encoder.encode_turns([(said[:1], "yes"), (said[:3], "no")])
        assert [base.tokenizer.decode(list(turn.response)) for turn in turns] == learnt
        assert len(encoder.encode_dialogues([said])) == n_sequences
        with frozen_base(AutoModelForCausalLM.from_pretrained(folder), tokenizer) as frozen:
            assert PromptEncoder(frozen.tokenizer, max_length=128).encode_turns([(said[:1], "yes")]) == turns[:1]
        assert tokenizer.eos_token == "<|end|>"


@pytest.mark.whole
def test_validate_counts_what_a_base_model_cannot_be_asked_and_what_loses_turns(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = exchanges(4)
    rows[0]["response"] = "on " * 300
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"this is turn number {i} of them"} for i in range(30)]
    rows = [{**row, "messages": None} for row in rows] + [{"persona_id": "ann", "dialogue_id": "long", "messages": turns}]
    data = write_rows(tmp_path / "a.jsonl", rows)
    asked = ["data", "validate", "--data", str(data), "--set", "model.max_length=256", "--set", "data.on_problem=skip", "--dialogues", "3"]
    assert main([*asked, "--base-model", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "lose their oldest turns  1\n" in shown
    assert "cannot be asked          1\n" in shown
    assert main(asked) == 0
    assert "lose their" not in capsys.readouterr().out
    assert main([*asked, "--base-model", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["lose_turns"], found["do_not_fit"]) == (1, 1)
    assert found["tokens"]["answer_tokens"]["maximum"] < 300, "what is skipped has no length"


def test_a_base_that_cannot_be_right_is_refused_before_a_server_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLUSTERLORA_STACK", str(tmp_path / "no-stack"))
    without_layer_1(folder)
    assert main(["study", "run", "--preset", "quick", "--base-model", str(folder)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: the checkpoint in ")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_base_that_cannot_be_quantised_is_refused_in_one_line_before_anything_is_recorded(
    folder: Path, tmp_path: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "people.jsonl", exchanges())
    small = study(folder, data)
    quantised = replace(small, model=replace(small.model, quantisation="nf4"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else name)
    with pytest.raises(
        ModelUnavailable, match=r"quantisation = nf4 needs bitsandbytes, which is not installed: pip install 'bits.*make quant"
    ):
        prepare_study(quantised, stores, SilentLog())
    assert not stores.studies.studies()
    with pytest.raises(ModelUnavailable, match="needs bitsandbytes"):
        load_base(str(folder), quantisation="int8")
    with pytest.raises(BadSettings, match="quantisation 'int4' is not supported; use none or nf4 or int8"):
        load_base(str(folder), quantisation="int4")  # pyrefly: ignore[bad-argument-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    edit(folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(ModelUnavailable, match=r"is stored quantised \(awq, config.json\); use its weights as they were"):
        prepare_study(small, stores, SilentLog())
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.gguf").touch()
    with pytest.raises(ModelUnavailable, match=r"nf4: the base model in .* is a GGUF file, whose weights are rounded already"):
        prepare_study(quantised, stores, SilentLog())
