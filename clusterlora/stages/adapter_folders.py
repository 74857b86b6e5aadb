"""Write the adapters of single people, which are kept in shards, as PEFT folders."""

from dataclasses import dataclass
from pathlib import Path

from clusterlora.adapters.stored import stored_folder
from clusterlora.adapters.weights import weight_files
from clusterlora.durable import write_durably
from clusterlora.errors import BadData, UnknownName
from clusterlora.planning.study_state import read_state
from clusterlora.planning.work_plan import trained_adapters, work_plan
from clusterlora.ports.stores import Stores


@dataclass(frozen=True, slots=True)
class WrittenAdapter:
    """An adapter by its name in the study, and the PEFT folder that was written of it."""

    name: str
    key: str
    persona_ids: tuple[str, ...]
    folder: Path


def write_adapter_folders(study_name: str, target: Path, stores: Stores, *, persona_id: str | None = None) -> tuple[WrittenAdapter, ...]:
    """Write a study's adapters of single people or small groups as `target/<folder>/<adapter>/`; return what was written.

    Args:
        persona_id: only the adapters that learned from this person.

    Raises:
        UnknownName: no such study, or no such person in it.
        BadData: none of these is trained, or the weights of one are nowhere.
    """
    state = read_state(study_name, stores)
    if persona_id is not None and persona_id not in state.dataset.ids:
        raise UnknownName(f"study {study_name!r} has nobody called {persona_id!r}; see the personas of `clusterlora data preview`")
    plan = work_plan(state)
    asked = {
        name: adapter
        for name, adapter in trained_adapters(state, plan).items()
        if plan.specs[name].is_one_of_many and persona_id in (None, *plan.specs[name].persona_ids)
    }
    if not asked:
        of = f"of {persona_id!r}" if persona_id else "of single people"
        raise BadData(f"study {study_name} has no trained adapters {of}; its methods are {', '.join(state.settings.methods)}")
    written: list[WrittenAdapter] = []
    for name, adapter in asked.items():
        spec = plan.specs[name]
        folder = target / spec.folder / spec.name.replace("-", "_")
        for file in weight_files(stored_folder(stores, adapter.key)):
            write_durably(folder / file.name, file.read_bytes())
        written.append(WrittenAdapter(name, adapter.key, spec.persona_ids, folder))
    return tuple(written)
