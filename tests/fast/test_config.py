"""Settings: which layer wins, what is refused, and the messages."""

from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.comparison.roles import deciding_control
from clusterlora.config import PRESETS, as_mapping, check, from_mapping, parse_setting, resolve
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.metadata import Decision
from clusterlora.planning.decisions import decide
from clusterlora.planning.ladder import OWN
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.settings import Rung, Study, prepared


def refusals(**overrides: object) -> list[str]:
    """Return the lines with which these overrides of the defaults are refused."""
    with pytest.raises(BadSettings) as refused:
        resolve(overrides={key.replace("__", "."): value for key, value in overrides.items()})
    return str(refused.value).splitlines()


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text("[recipe]\nepochs = 7\nrank = 4\n")
    study = resolve("quick", file, {"recipe.rank": 2})
    assert study.recipe.rank == 2, "flag over file"
    assert study.recipe.epochs == 7, "file over preset"
    assert study.data.train == 3, "preset over default"
    assert study.recipe.alpha == 16.0, "default"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_possible_study_of_its_name(name: str) -> None:
    assert resolve(name).name == name


@pytest.mark.parametrize("name", [*PRESETS, None])
def test_every_preset_compares_the_control_of_what_it_could_claim(name: str | None) -> None:
    methods = resolve(name).methods
    deciding = [control for method in methods if (control := deciding_control(method)) is not None]
    assert deciding
    assert set(deciding) <= set(methods)


def test_the_mission_preset_has_the_settings_of_the_mission() -> None:
    study = resolve("mission")
    assert study.clustering.sizes == study.data.synthetic.cluster_sizes == (16, 52, 25, 35, 72)
    assert (study.data.train, study.data.val, study.data.test) == (30, 10, 10)
    assert (study.recipe.rank, study.recipe.epochs, study.recipe.batch_size, study.recipe.learning_rate) == (8, 3, 2, 5e-4)
    assert (study.gate.mean_similarity, study.gate.worst_persona, study.gate.share_improved) == (0.83, 0.70, 0.60)


def test_the_demo_differs_from_the_mission_only_in_dialogues_three_methods_the_scale_of_the_gate_and_new_personas() -> None:
    demo, mission = as_mapping(resolve("demo")), as_mapping(resolve("mission"))
    for part in ("recipe", "clustering", "model"):
        assert demo[part] == mission[part]
    assert set(mission["methods"]) - set(demo["methods"]) == {"hybrid", "prefix", "merge"}
    assert set(demo["methods"]) < set(mission["methods"])
    assert demo["gate"] | {"mean_similarity": 0.83, "worst_persona": 0.70} == mission["gate"]
    assert demo["assignment"] | {"held_out_share": 0.2} == mission["assignment"]
    assert demo["data"]["synthetic"]["cluster_sizes"] == mission["data"]["synthetic"]["cluster_sizes"]


def test_a_study_is_unchanged_by_a_round_trip_through_json() -> None:
    study = resolve("demo")
    assert from_mapping(as_mapping(study)) == study


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.path": "people.jsonl", "data.source": "table"},
        {"data.personas": 20},
        {"data.synthetic.cluster_sizes": [5, 5]},
        {"clustering.k": 3},
    ],
    ids=str,
)
def test_a_presets_cluster_sizes_are_dropped_with_its_personas(overrides: dict[str, object]) -> None:
    k = overrides.get("clustering.k", 5)
    assert resolve("mission", overrides={**overrides, "clustering.k": k}).clustering.sizes is None


def test_the_number_of_clusters_that_was_planted_is_not_asked_of_other_people() -> None:
    own = {"data.source": "table", "data.path": "people.jsonl"}
    for preset in ("quick", "demo"):
        assert resolve(preset).clustering.k == 5
        assert (resolve(preset, overrides=own).clustering.k, resolve(preset, overrides=own).clustering.sizes) == (None, None)
        assert resolve(preset, overrides={**own, "clustering.k": 4}).clustering.k == 4
        assert resolve(preset, overrides={"data.personas": 20}).clustering.k == 5, "invented, too"
    assert resolve("mission", overrides=own).clustering.k == 5, "the mission asks for them"


def test_a_misspelt_setting_is_refused_with_the_closest_known_one() -> None:
    assert refusals(recipe__learning_rat=1e-3) == ["recipe.learning_rat: no such setting; did you mean recipe.learning_rate?"]


def test_an_unknown_setting_inside_the_ladder_is_refused() -> None:
    (line,) = refusals(gate__ladder=[{"name": "x", "epoch": 2}])
    assert line == "gate.ladder.0.epoch: no such setting; did you mean gate.ladder.0.epochs?"


def test_nll_decides_where_no_threshold_asks_for_a_percentage():
    overrides = {"evaluation.headline": "nll", "evaluation.metrics": ["nll"]}
    assert resolve(preset="taste", overrides=overrides | {"data.source": "table", "data.path": "x.jsonl"}).evaluation.headline == "nll"
    with pytest.raises(BadSettings, match=r"gate.worst_persona = 0.7: asks for a percentage, and evaluation.headline = 'nll' is none"):
        resolve(overrides=overrides | {"gate.worst_persona": 0.7})


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.system_prompt", "be kind\udcff", "holds what is no UTF-8 text; write it in UTF-8"),
        ("model.template_arguments", [["mode", "\ud800"]], "holds what is no UTF-8 text; write it in UTF-8"),
        ("recipe.rank", 0, "use at least 1"),
        ("recipe.rank", "eight", "use a whole number"),
        ("recipe.learning_rate", 0, "use more than 0"),
        ("recipe.dropout", 0.95, "use at most 0.9"),
        ("model.dtype", "fp8", "use 'auto', 'float32' or 'bfloat16'"),
        ("data", 3, "use a table of settings"),
        ("methods", "unified", "use a list"),
        ("methods", ["unified", "clusters"], "did you mean cluster?"),
        ("methods", ["unified", "unified"], "listed twice"),
        ("methods", [], "name at least one of"),
        ("evaluation.metrics", ["bleu", "embedding_similarity", "nll"], "unknown metric"),
        ("evaluation.headline", "rouge_x", "not measured"),
        ("evaluation.headline", "prompt_tokens", "does not say which answers are better"),
        ("data.source", "csv", "unknown"),
        ("data.source", "table", "needs a file or folder"),
        ("data.path", "people.jsonl", "set data.source to table"),
        ("clustering.algorithm", "response", "did you mean responses?"),
        ("clustering.sizes", [1, 2, 3, 4, 5], "they sum to 15, but there are 200 personas"),
        ("clustering", {"k": 5, "sizes": [100, 100]}, "2 sizes for k = 5"),
        ("clustering.k", 201, "more clusters than the 200 personas"),
        ("data.synthetic.noise_share", 0.9, "at most 1 together"),
        ("data.train", 49, "fewer than train + val + test = 69"),
        ("name", "../../x", "lower-case letters"),
        ("name", "", "use at least 1 character"),
        ("name", "colx-unified", "models of study 'colx' are registered as colx-unified and the like"),
        ("name", "colx-cluster-07", "models of study 'colx' are registered as colx-cluster-07"),
        ("name", "clusterlora.db-wal", "belong to the files of the database"),
        ("runtime.micro_batch", 64, "larger than recipe.batch_size"),
        ("evaluation.max_new_tokens", 512, "no room for a prompt"),
        ("recipe.target_modules", [], "nothing to change"),
        ("gate.ladder", [{"name": "again"}], "changes nothing"),
        ("gate.ladder", [{"name": "a", "epochs": 1}, {"name": "a", "epochs": 2}], "two rungs"),
        ("gate.ladder", [{"name": "Lower LR", "epochs": 1}], "lower-case"),
        ("gate.ladder", [{"epochs": 1}], "missing"),
    ],
)
def test_an_impossible_setting_is_refused_in_one_line_with_its_name_and_the_fix(field: str, value: object, words: str) -> None:
    (line,) = refusals(**{field: value})
    assert field in line or field.split(".")[0] in line
    assert words in line


def test_what_retrieval_costs_is_measured_wherever_a_new_study_retrieves() -> None:
    """Studies of earlier versions that are recorded go on, and their copies too."""
    study = resolve(
        overrides={"methods": ["unified", "retrieval", "hybrid_retrieval"], "evaluation.metrics": ["embedding_similarity", "nll"]}
    )
    with pytest.raises(BadSettings) as refusal:
        check(study, is_new=True)
    assert str(refusal.value).startswith(
        "evaluation.metrics: retrieval and hybrid_retrieval show exchanges in prompts, and prompt_tokens, their cost, is missing"
    )
    check(replace(study, data=replace(study.data, permute_seed=1)), is_new=True)
    check(replace(study, data=replace(study.data, canaries=5)), is_new=True)
    before = {"root": "a", "number": 1, "of": "a", "champion": "cluster-00", "champion_method": "cluster"}
    check(replace(study, refresh=replace(study.refresh, **before)), is_new=True)
    check(resolve(overrides={"methods": ["unified", "retrieval"]}), is_new=True)


def test_a_rung_of_the_ladder_cannot_have_a_reserved_name(stores: Stores) -> None:
    stores.studies.create_study(prepared(Study(), "float32"))
    decide("mission", stores, Decision("retry", Rung(name="asked", epochs=6)))
    (rung,) = read_state("mission", stores).retry_rungs
    for name in (OWN.name, rung.name, "asked-12"):
        (line,) = refusals(gate__ladder=[{"name": name, "epochs": 1}])
        assert line.startswith(f"gate.ladder.0.name = {name!r}: ")
        assert line.endswith("choose another name")
    assert resolve(overrides={"gate.ladder": [{"name": "owner", "epochs": 1}, {"name": "asked-twice", "epochs": 2}]})


def test_all_problems_are_named_at_once() -> None:
    assert len(refusals(recipe__rank=0, model__dtype="fp8", clustering__k="x")) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [("[recipe\n", "not valid TOML"), ("\udcff", "UTF-8"), (None, "no such configuration file")],
    ids=["toml", "bytes", "absent"],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "study.toml"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadSettings, match=words) as refused:
        resolve(file=file)
    assert "study.toml" in str(refused.value)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="unknown preset 'big'; known: ") as refusal:
        resolve("big")
    assert set(str(refusal.value).partition("known: ")[2].split(", ")) == {*PRESETS}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recipe.epochs=1", ("recipe.epochs", 1)),
        ("model.persona_in_prompt = true", ("model.persona_in_prompt", True)),
        ('methods=["unified","cluster"]', ("methods", ["unified", "cluster"])),
        ("model.base=Qwen/Qwen2.5-0.5B-Instruct", ("model.base", "Qwen/Qwen2.5-0.5B-Instruct")),
        ("gate.mean_similarity=none", ("gate.mean_similarity", None)),
        ("model.quantisation=none", ("model.quantisation", "none")),
        ("model.system_prompt=a=b", ("model.system_prompt", "a=b")),
    ],
)
def test_a_setting_on_the_command_line_is_toml_or_plain_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["recipe.epochs", "=1", " = 1"])
def test_a_setting_without_field_or_value_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="field=value"):
        parse_setting(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "k", "sizes", "rank", "ladder", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["name", "methods", "data", "recipe", "clustering", "gate", "evaluation", "runtime", "typo"]), JSON, max_size=4
    )
)
def test_any_mapping_is_a_study_or_refused_in_one_line_per_problem(settings: dict[str, object]) -> None:
    try:
        study = from_mapping(settings)
    except BadSettings:
        return
    assert from_mapping(as_mapping(study)) == study


def test_relative_paths_of_a_file_start_at_the_file_wherever_a_process_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "mine"
    for made in (elsewhere, folder / "bases" / "small", folder / "homelm"):
        made.mkdir(parents=True)
    for name in ("people.jsonl", "splits.json"):
        (folder / name).write_text("{}")
    file = folder / "study.toml"
    file.write_text(
        'name = "mine"\n[data]\nsource = "table"\npath = "people.jsonl"\nsplits = "./splits.json"\n'
        '[model]\nbase = "bases/small"\nembedding = "somebody/hub-id"\n'
    )
    monkeypatch.chdir(elsewhere)
    study = resolve(file=file)
    assert (study.data.path, study.data.splits) == (str(folder / "people.jsonl"), str(folder / "splits.json"))
    assert (study.model.base, study.model.embedding) == (str(folder / "bases" / "small"), "somebody/hub-id")
    (folder / "people.jsonl").rename(elsewhere / "people.jsonl")
    assert resolve(file=file).data.path == str(folder / "people.jsonl"), "a file of that name where the process runs is another one"
    monkeypatch.chdir(folder)
    assert resolve(file=Path("study.toml")) == study
    monkeypatch.setenv("HOME", str(elsewhere))
    file.write_text('[data]\nsource = "table"\npath = "~/people.jsonl"\n')
    assert resolve(file=file).data.path == str(elsewhere / "people.jsonl"), "~ is the home folder"
    file.write_text('[model]\nbase = "homelm"\n')
    assert resolve(file=file).model.base == "homelm", "a known model is no folder that happens to be called like it"


def numbers(hint: Any, path: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield every number of a type's fields by its dotted name, with what bounds it."""
    if isinstance(hint, type) and is_dataclass(hint):
        for name, inner in get_type_hints(hint, include_extras=True).items():
            yield from numbers(inner, f"{path}.{name}")
    elif get_origin(hint) is Annotated and get_args(hint)[0] in (int, float):
        yield path, get_args(hint)[1:]
    elif hint in (int, float):
        yield path, ()
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from numbers(inner, path)


def test_every_number_has_a_bound_on_either_side() -> None:
    of = list(numbers(Study, "study"))
    assert len(of) > 40
    for name, bounds in of:
        assert any(isinstance(bound, Ge | Gt) for bound in bounds), name
        assert any(isinstance(bound, Le) for bound in bounds), name
