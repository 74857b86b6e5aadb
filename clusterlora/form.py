"""The form of a study on Prefect's page: a preset that fills what is left as it is, and names to choose from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from clusterlora.config import as_mapping, resolve
from clusterlora.settings import Study

MISSION = resolve("mission")
"""What the form shows before anything is filled in: the preset `mission` of the command line."""

Preset = Literal["mission", "all", "demo", "quick", "taste", "overnight"]
"""The names of `config.PRESETS`, as a choice."""


def _choices() -> Mapping[tuple[str, str], tuple[str, ...]]:
    """Return the names to choose from, by group of settings and field."""
    # Imported late, as in `config`: only who makes a form needs the catalogs.
    from clusterlora.clustering import ALGORITHMS, AUTO
    from clusterlora.data import SOURCES
    from clusterlora.engine.kinds import ADAPTER_KINDS
    from clusterlora.evaluation.metrics import METRICS
    from clusterlora.methods import METHODS

    return {
        ("Study", "methods"): tuple(METHODS),
        ("DataSettings", "source"): tuple(SOURCES),
        ("ClusteringSettings", "algorithm"): (AUTO, *ALGORITHMS),
        ("EvaluationSettings", "metrics"): tuple(METRICS),
        ("EvaluationSettings", "headline"): tuple(METRICS),
        ("Recipe", "kind"): tuple(ADAPTER_KINDS),
    }


class _Choices:
    """Makes names in a JSON schema choices; what is valid is still checked by `config.check`, with its own messages."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> Any:
        """Return the schema of Study with an enum wherever a field names an entry of a catalog."""
        schema = handler(core_schema)
        study = handler.resolve_ref_schema(schema)
        for (owner, name), choices in _choices().items():
            of_owner = study if owner == "Study" else next(self._definitions(study, owner, handler))
            field = of_owner["properties"][name]
            strings = [field.get("items"), field, *field.get("anyOf", ())]
            next(one for one in strings if one and one.get("type") == "string")["enum"] = list(choices)
        return schema

    def _definitions(self, study: Mapping[str, Any], owner: str, handler: Any) -> Iterator[Any]:
        """Yield the definition of a group of settings."""
        for field in study["properties"].values():
            definition = handler.resolve_ref_schema(field) if "$ref" in field else field
            if definition.get("title") == owner:
                yield definition


FormStudy = Annotated[Study, _Choices()]


def filled_in(preset: str | None, config: Study) -> Study:
    """Return the study of a form: of the preset where one is chosen, with every field that differs from what the form began with.

    Raises:
        BadSettings, UnknownName: as `config.resolve`.
    """
    if preset is None:
        return config
    begun_with = (as_mapping(MISSION), as_mapping(Study()))  # what the page fills in, and what a request without the page leaves out
    return resolve(preset, overrides=dict(_changed(as_mapping(config), begun_with)))


def _changed(settings: Mapping[str, Any], begun_with: Sequence[Mapping[str, Any]], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted fields that differ from all of these, with their values."""
    for name, value in settings.items():
        others = [other[name] for other in begun_with]
        if isinstance(value, Mapping):
            yield from _changed(value, others, f"{path}{name}.")
        elif value not in others:
            yield f"{path}{name}", value
