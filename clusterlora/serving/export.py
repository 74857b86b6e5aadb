"""Export a registered model as plain PEFT folders, named by content, with the command that serves them elsewhere."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.held import HeldAdapters
from clusterlora.durable import make_folder, put_folder_in_place, write_durably
from clusterlora.engine.kinds import kind_of, read_weights
from clusterlora.engine.peft_folder import write_factors
from clusterlora.errors import BadData, UnknownName
from clusterlora.models.base import base_licence, base_to_describe
from clusterlora.recipe import Recipe
from clusterlora.serving.elsewhere import BASE_FOLDER, PEFT_LINES, AnswerSettings, answer_settings, write_settings
from clusterlora.serving.gguf_adapter import write_gguf
from clusterlora.serving.merged import MERGED_LINES, merge_adapters, refuse_unmergeable
from clusterlora.serving.modelfile import llama_command, modelfile
from clusterlora.stores.routing_table import KeyedComposition, RoutingTable, read_routing_table
from clusterlora.values import WeightedAdapter

Format = Literal["vllm", "peft", "gguf", "merged"]

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM accepts for --max-lora-rank. Source: MaxLoRARanks in vllm/config/lora.py."""

BASE_ROUTE = "base"
"""The route of personas that the base model answers alone."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. `adapter_by_persona` gives the model name that a persona's requests must use."""

    folder: Path
    base_model: str
    adapters: tuple[str, ...]
    adapter_by_persona: Mapping[str, str]
    default: str
    max_rank: int
    command: str
    licence: str
    """That of the base model."""


def export(artifacts: Path, target: Path, form: Format, *, persona_id: str | None = None) -> Exported:
    """Write a folder that answers as the study does without this package, and may be carried anywhere; return what was written.

    It holds adapters/<name>-<hash>/ (PEFT folders), routes.json (persona -> adapter, and how answers are generated), chat_template.jinja
    with the study's system prompt, arguments and date, generation_config.json, serve.sh or load.py, and base/ unless the hub has it. GGUF
    adapters are files, adapters/<name>-<hash>.gguf, with a Modelfile for each; merged ones are full models, merged/<name>-<hash>/.

    A composition of several adapters becomes one adapter with exactly their sum as its update; its rank is the sum of theirs.

    Args:
        persona_id: write only what answers this person, and everybody else with it.

    Raises:
        UnknownName: there is no such person.
        BadData: the target is not empty, an adapter differs from what was recorded, or a composition is more than adapter weights (a
            prefix, a prompt with exchanges).
        ModelUnavailable: the base model is not on this machine, or is another one here.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadData(f"{target} exists and is not empty; give another --out")
    table = _of_persona(read_routing_table((artifacts / "routes.json").read_text(encoding="utf-8")), persona_id)
    adapters = HeldAdapters.of_model(artifacts / "adapters")
    table.refuse_other_weights(adapters, table.keys)
    _refuse_prompts(table)
    if form == "vllm" and table.model.quantisation == "int8":
        raise BadData(
            f"study {table.study!r} holds its base in int8, and vLLM quantises one with bitsandbytes to nf4 alone; use --format peft or "
            "`mlflow models serve`"
        )
    if form == "merged":
        refuse_unmergeable(table.model)
    make_folder(target)
    try:
        return _export(table, adapters, target, form)
    except BaseException:
        # The folder was empty: what lies there is this export's, and would refuse the next one.
        for entry in target.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise


def _export(table: RoutingTable, adapters: HeldAdapters, target: Path, form: Format) -> Exported:
    compositions = dict.fromkeys((table.default, *table.personas.values()))
    settings = answer_settings(table.model, max_new_tokens=table.max_new_tokens, revision=table.base_revision)
    make_folder(target / "adapters")
    written = {
        composition: _write(composition, table, settings, adapters, target / "adapters", form)
        for composition in compositions
        if composition.adapters
    }
    _refuse_other_kinds({name: kind_of(target / "adapters" / name).name for name in written.values()})
    names = tuple(sorted(set(written.values())))
    ranks = [_adapter_config(target / "adapters" / name).get("r", 1) for name in names]
    adapter_by_persona = {persona_id: written.get(composition, BASE_ROUTE) for persona_id, composition in table.personas.items()}
    rank = _smallest_allowed(max(ranks, default=1)) if form == "vllm" else max(ranks, default=1)
    write_settings(target, table.model, settings)
    if form == "gguf":
        _as_gguf(target, names, table)
    if form == "merged":
        _as_merged(target, names, table, needs_base=not all(one in written for one in compositions))
    command = _command(form, settings, names, rank)
    exported = Exported(
        target,
        settings.base_model,
        names,
        adapter_by_persona,
        written.get(table.default, BASE_ROUTE),
        rank,
        command,
        base_licence(table.model.base),
    )
    routes = {
        "study": table.study,
        **asdict(settings),
        "labels": table.labels,
        "base_revision": table.base_revision,
        "quantisation": table.model.quantisation,
        "device_map": table.model.device_map,
        "default": exported.default,
        "personas": adapter_by_persona,
    }
    write_durably(target / "routes.json", (json.dumps(routes, indent=2, ensure_ascii=False) + "\n").encode())
    write_durably(target / ("load.py" if form in ("peft", "merged") else "serve.sh"), command.encode())
    return exported


def _command(form: Format, settings: AnswerSettings, names: tuple[str, ...], rank: int) -> str:
    """Return the program that serves an export."""
    match form:
        case "vllm":
            return _vllm_command(settings, names, rank)
        case "gguf":
            return llama_command(names)
        case "peft":
            return PEFT_LINES
        case "merged":
            return MERGED_LINES


def _of_persona(table: RoutingTable, persona_id: str | None) -> RoutingTable:
    """Return the table in which one person's composition answers everybody; with None as it is. Raises UnknownName."""
    if persona_id is None:
        return table
    composition = table.personas.get(persona_id)
    if composition is None:
        raise UnknownName(
            f"study {table.study!r} has nobody called {persona_id!r}; see the personas of its routes.json, or leave --persona out"
        )
    used = {adapter.key for adapter in composition.adapters}
    return replace(
        table,
        default=composition,
        personas={persona_id: composition},
        names={key: name for key, name in table.names.items() if key in used},
        weights_sha256={key: sha256 for key, sha256 in table.weights_sha256.items() if key in used},
    )


def _as_merged(target: Path, names: tuple[str, ...], table: RoutingTable, *, needs_base: bool) -> None:
    """Replace the PEFT folders of an export by full models; the base stays where it answers somebody. Raises as `merge_adapters`."""
    merge_adapters(target, names, table.model)
    if not needs_base:
        shutil.rmtree(target / BASE_FOLDER, ignore_errors=True)


def _as_gguf(target: Path, names: tuple[str, ...], table: RoutingTable) -> None:
    """Replace the PEFT folders of an export by GGUF files, with a Modelfile for each. Raises BadData as `write_gguf`."""
    base = base_to_describe(table.model.base)
    for name in names:
        folder = target / "adapters" / name
        write_gguf(target / "adapters" / f"{name}.gguf", read_weights(folder).factors, base.model.config)
        shutil.rmtree(folder)
    for name in (BASE_ROUTE, *names):
        text = modelfile(base, table, None if name == BASE_ROUTE else f"adapters/{name}.gguf")
        write_durably(target / f"{name}.Modelfile", text.encode())


def _adapter_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def _name_base(folder: Path, settings: AnswerSettings) -> None:
    """Let an adapter name its base as it is found from the export's folder."""
    commit = None if settings.base_model == BASE_FOLDER else settings.base_commit
    config = _adapter_config(folder) | {"base_model_name_or_path": settings.base_model, "revision": commit}
    write_durably(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True).encode())


def _refuse_prompts(table: RoutingTable) -> None:
    fix = "serve this model with `mlflow models serve`, or export one of another"
    if table.model.persona_in_prompt:
        raise BadData(f"study {table.study!r} has model.persona_in_prompt: its prompts show a description beside the adapter; {fix} study")
    for persona_id, composition in table.personas.items():
        if composition.shots or composition.persona_in_prompt:
            raise BadData(
                f"persona {persona_id!r} is answered with more than an adapter: its prompt shows exchanges or a description; {fix} method"
            )


def _write(
    composition: KeyedComposition, table: RoutingTable, settings: AnswerSettings, adapters: HeldAdapters, target: Path, form: Format
) -> str:
    """Write a composition as one PEFT folder; return its name, which ends in the hash of its files."""
    scratch = target / ".unfinished"
    if len(composition.adapters) == 1 and composition.adapters[0].weight == 1.0:
        shutil.copytree(adapters.folder(composition.adapters[0].key), scratch)
        label = table.names.get(composition.adapters[0].key, "adapter")
    else:
        weighted = [WeightedAdapter(adapter.key, adapter.weight) for adapter in composition.adapters]
        weights = combined_weights(weighted, adapters.weights)
        if weights.prefix is not None:
            raise BadData("a prefix stacked on other adapters cannot be one PEFT folder; serve this model with `mlflow models serve`")
        rank = max(a.shape[0] for a, _ in weights.factors.values())
        modules = tuple(sorted({name.rpartition(".")[2] for name in weights.factors}))
        recipe = Recipe(rank=rank, target_modules=modules)
        configs = [_adapter_config(adapters.folder(adapter.key)) for adapter in composition.adapters]
        write_factors(scratch, weights.factors, recipe, base=table.model.base, configs=configs)
        label = "-".join(table.names.get(adapter.key, "adapter") for adapter in composition.adapters)
    if form in ("vllm", "gguf"):
        _refuse_unserved(scratch, label, form)
    _name_base(scratch, settings)
    name = f"{label.replace('+', '-')}-{adapter_digest(scratch)}"
    if (target / name).exists():
        shutil.rmtree(scratch)
    else:
        put_folder_in_place(scratch, target / name)
    return name


def adapter_digest(folder: Path) -> str:
    """Return the hash of an exported adapter's files, in which its name ends."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.iterdir()))).hexdigest()[:12]


def _refuse_other_kinds(kind_by_adapter: Mapping[str, str]) -> None:
    """Raise BadData for kinds that no PEFT model has side by side."""
    kinds = set(kind_by_adapter.values()) - {"lora", "rslora", "dora"}
    if kinds and len(set(kind_by_adapter.values())) > 1:
        said = ", ".join(f"{name} is {kind}" for name, kind in kind_by_adapter.items())
        raise BadData(f"one PEFT model cannot hold adapters of these kinds: {said:.300}; serve this model with `mlflow models serve`")


def _refuse_unserved(folder: Path, label: str, form: Format) -> None:
    """Raise BadData for adapters that a server refuses: not LoRA, with biases, whole modules or DoRA, or for vLLM of too large a rank."""
    config = _adapter_config(folder)
    if config.get("peft_type") != "LORA":
        raise BadData(
            f"adapter {label} is {config.get('peft_type')}, and --format {form} needs LoRA; use --format peft or `mlflow models serve`"
        )
    if config.get("modules_to_save") or config.get("use_dora") or config.get("bias", "none") != "none":
        raise BadData(
            f"adapter {label} has biases, whole modules or DoRA, which multi-LoRA servers refuse; export --format peft, or train it as lora"
        )
    if form == "vllm":
        _smallest_allowed(int(config["r"]))


def _smallest_allowed(rank: int) -> int:
    if rank > VLLM_RANKS[-1]:
        raise BadData(f"rank {rank} is above {VLLM_RANKS[-1]}, the most that is served; lower recipe.rank or export single adapters")
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


def _vllm_command(settings: AnswerSettings, names: tuple[str, ...], rank: int) -> str:
    commit = "" if settings.base_model == BASE_FOLDER else f" --revision {settings.base_commit} --tokenizer-revision {settings.base_commit}"
    # vLLM quantises as the study did: to NF4, scales quantised again.
    quantised = " --quantization bitsandbytes" if settings.bitsandbytes else ""
    modules = "".join(f" \\\n    {name}=adapters/{name}" for name in names)
    adapters = (
        f" \\\n    --enable-lora --max-lora-rank {rank} --max-loras {min(8, len(names))} \\\n    --lora-modules{modules}" if names else ""
    )
    return (
        "#!/bin/sh\n# Run in this folder. A request names its adapter as `model`: routes.json says which is whose.\n"
        f"exec vllm serve {settings.base_model}{commit} --served-model-name {BASE_ROUTE} --dtype {settings.dtype}{quantised} \\\n"
        "    --chat-template chat_template.jinja --generation-config . --override-generation-config '{\"temperature\": 0}'"
        f"{adapters}\n"
    )
