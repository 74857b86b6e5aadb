"""What makes a study the same study when it is launched again."""

from dataclasses import replace
from typing import Any, cast

from clusterlora.errors import BadData, BadSettings
from clusterlora.settings import PreparedStudy, Study, prepared
from clusterlora.stores.json_codec import plain
from clusterlora.values import Dataset


def as_decided(asked: Study, known: PreparedStudy) -> PreparedStudy:
    """Return what is asked for, with what it leaves open as it was decided when the known study was first prepared: dtype and date."""
    study = prepared(asked, known.model.dtype if asked.model.dtype == "auto" else asked.model.dtype)
    return replace(study, model=replace(study.model, template_date=asked.model.template_date or known.model.template_date))


def refuse_other_settings(known: PreparedStudy, asked: PreparedStudy) -> None:
    """Check that a study of a known name is asked for with the settings it began with; runtime settings may change.

    Raises:
        BadSettings: names every field that differs, with both values.
    """
    before, after = plain(known), plain(asked)
    del before["runtime"], after["runtime"]
    if differing := _differences(before, after, ""):
        raise BadSettings(
            f"study {known.name!r} exists with other settings: {'; '.join(differing)}. Give them back their values, or choose another name"
        )


def refuse_other_data(study: str, known_digest: str | None, dataset: Dataset) -> None:
    """Check that a study's data, if it has any, are these. Raises BadData."""
    if known_digest not in (None, dataset.digest):
        raise BadData(
            f"study {study!r} holds other data (digest {known_digest}, offered {dataset.digest}); "
            "bring the data back as they were, or choose another study name"
        )


def _differences(before: object, after: object, where: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        old, new = cast("dict[str, Any]", before), cast("dict[str, Any]", after)
        return [d for key in old for d in _differences(old[key], new[key], f"{where}.{key}" if where else key)]
    return [] if before == after else [f"{where} was {before!r}, is {after!r}"]
