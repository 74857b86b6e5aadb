"""An adapter's cache key: a hash of everything that determines its weights. An adapter with a known key is never trained again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from clusterlora.adapters.learned import learned
from clusterlora.recipe import ENGINE_VERSION, Recipe
from clusterlora.settings import PreparedModel
from clusterlora.values import AdapterSpec, Dataset, Dialogue, Persona, Split, digest

_ADDED: Mapping[str, Any] = {"template_arguments": (), "template_date": None, "quantisation": "none"}
"""Settings of the base that came later, with the value that changes nothing: a key that was recorded without them stays what it was."""
_WHERE = ("device_map",)
"""Settings of the base that say where it is computed, not what."""


def settings_in_keys(model: PreparedModel) -> Mapping[str, Any]:
    """Return the settings of the base as they enter a key: those of `_ADDED` only where they change something."""
    return {name: value for name, value in _values(model) if name not in _WHERE and (name not in _ADDED or value != _ADDED[name])}


def _values(settings: PreparedModel | Recipe) -> Iterator[tuple[str, Any]]:
    for field in fields(settings):
        yield field.name, getattr(settings, field.name)


def cache_keys(specs: Sequence[AdapterSpec], dataset: Dataset, *, base_revision: str, model: PreparedModel) -> Mapping[str, str]:
    """Return the cache key of every spec, by the spec's name.

    The key covers neither the name nor settings that change only where and how fast an adapter is trained.
    """
    spec_by_name = {spec.name: spec for spec in specs}
    personas = dataset.by_id()
    keys: dict[str, str] = {}
    added = [(name, value) for name, value in settings_in_keys(model).items() if name in _ADDED]

    @cache
    def data_digest(persona_id: str, split: Split, *, persona_in_prompt: bool) -> str:
        return _digest(personas[persona_id], personas[persona_id].of_split(split), persona_in_prompt=persona_in_prompt)

    def key_of(name: str) -> str:
        if name not in keys:
            spec = spec_by_name[name]
            if spec.kept:
                keys[name] = spec.kept
                return keys[name]
            if spec.imported:
                keys[name] = digest({"imported": spec.imported, "base": base_revision})
                return keys[name]
            persona_in_prompt = model.persona_in_prompt or spec.persona_in_prompt
            splits: tuple[Split, ...] = ("train", "val") if spec.recipe.patience else ("train",)
            ranked_by = (spec.ranking, model.embedding) if spec.ranking == "embedding" else (spec.ranking,)
            shown = {"shots": (spec.shots, *ranked_by)} if spec.shots else {}
            merged = {"merging": spec.merging, "parts": sorted(key_of(part) for part in spec.merge_of)} if spec.merge_of else {}
            data = [data_digest(p, split, persona_in_prompt=persona_in_prompt) for split in splits for p in spec.persona_ids]
            if spec.learns_from:
                data[: len(spec.persona_ids)] = [_digest(p, own, persona_in_prompt=persona_in_prompt) for p, own in learned(spec, personas)]
            keys[name] = digest(
                {
                    **merged,
                    **shown,
                    "engine": ENGINE_VERSION,
                    "base": base_revision,
                    "prompt": (model.dtype, model.system_prompt, model.max_length, *added),
                    "data": data,
                    "recipe": {name: value for name, value in _values(spec.recipe) if name != "kind"},
                    "kind": spec.recipe.kind,
                    "init": key_of(spec.init_from) if spec.init_from else None,
                    "underlay": key_of(spec.frozen_adapter) if spec.frozen_adapter else None,
                }
            )
        return keys[name]

    return {name: key_of(name) for name in spec_by_name}


def _digest(persona: Persona, dialogues: Sequence[Dialogue], *, persona_in_prompt: bool) -> str:
    description = persona.description if persona_in_prompt else None
    return digest([(d.context, [(t.role, t.text) for t in d.turns], description) for d in dialogues])
