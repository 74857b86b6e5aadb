"""Check that a study launched again under its name has the same settings and the same data."""

from dataclasses import replace
from typing import Any, cast

from clusterlora.errors import BadData, BadSettings
from clusterlora.settings import Lengths, PreparedStudy, Study, prepared
from clusterlora.stores.json_codec import plain
from clusterlora.values import Dataset


def as_decided(study: Study, recorded: PreparedStudy) -> PreparedStudy:
    """Return the study with everything it leaves open as it was decided when the recorded study was first prepared."""
    model = replace(
        study.model,
        base=study.model.base or recorded.model.base,
        system_prompt=recorded.model.system_prompt if study.model.system_prompt is None else study.model.system_prompt,
        template_date=study.model.template_date or recorded.model.template_date,
    )
    # The names of groups, by which attempts are counted, depend on it.
    runtime = replace(study.runtime, shards=study.runtime.shards or recorded.runtime.shards)
    dtype = recorded.model.dtype if model.dtype == "auto" else model.dtype
    lengths = Lengths(recorded.model.max_length, recorded.evaluation.max_new_tokens)
    return prepared(replace(study, model=model, runtime=runtime), dtype, lengths)


def refuse_other_settings(recorded: PreparedStudy, study: PreparedStudy) -> None:
    """Check that a study launched again has the settings that were recorded; runtime settings may change.

    Raises:
        BadSettings: names every field that differs, with both values.
    """
    before, after = plain(recorded), plain(study)
    del before["runtime"], after["runtime"]
    if differing := _differences(before, after, ""):
        raise BadSettings(
            f"study {study.name!r} exists with other settings: {'; '.join(differing)}. Give them back their values, or choose another name"
        )


def refuse_other_data(study: str, recorded_digest: str | None, dataset: Dataset) -> None:
    """Check that a study's data, if any are recorded, are these. Raises BadData."""
    if recorded_digest not in (None, dataset.digest):
        raise BadData(
            f"study {study!r} holds other data (digest {recorded_digest}, offered {dataset.digest}); "
            "bring the data back as they were, or choose another study name"
        )


def _differences(before: object, after: object, where: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        old, new = cast("dict[str, Any]", before), cast("dict[str, Any]", after)
        return [d for key in old for d in _differences(old[key], new[key], f"{where}.{key}" if where else key)]
    return [] if before == after else [f"{where} was {before!r}, is {after!r}"]
