"""What freshly trained adapters answer: a few val prompts per training, for people to read. No score, and no result, depends on them."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.stored import stored_folder
from clusterlora.data.prompts import items, prompt_encoder
from clusterlora.durable import write_durably
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.memory import is_allocation_failure
from clusterlora.engine.stacked import Weights
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.values import AdapterSpec, Item, WeightedAdapter

FOLDER = "samples"
"""Folder of a study with a file per training, for `watch`; in MLflow a folder of the training's run."""
_MOST_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Sample:
    """An adapter's answer to a val prompt of one of its people, beside the person's own."""

    adapter: str
    prompt: str
    answer: str
    reference: str

    def __str__(self) -> str:
        return f"{self.adapter} on val: {_short(self.prompt)!r} -> {_short(self.answer)!r} (own answer: {_short(self.reference)!r})"


def sample_answers(
    state: StudyState, plan: WorkPlan, specs: Sequence[AdapterSpec], base: BaseModel, stores: Stores, log: RunLog
) -> tuple[Sample, ...]:
    """Return the answers of a training's first adapters, as many as `runtime.samples`, to one val prompt each; none without memory.

    Adapters that learn with exchanges in the prompt are left out.
    """
    study, personas = state.settings, state.dataset.by_id()
    asked: list[tuple[AdapterSpec, Item]] = []
    for spec in [spec for spec in specs if not spec.shots][: study.runtime.samples or 0]:
        model = replace(study.model, persona_in_prompt=study.model.persona_in_prompt or spec.persona_in_prompt)
        of_its_people = (item for persona_id in spec.persona_ids for item in items(model, personas[persona_id], "val"))
        if (item := next(of_its_people, None)) is not None:
            asked.append((spec, item))
    if not asked:
        return ()

    def weights(spec: AdapterSpec) -> Weights:
        parts = [WeightedAdapter(name) for name in (spec.frozen_adapter, spec.name) if name]
        return combined_weights(parts, lambda name: read_weights(stored_folder(stores, plan.keys[name])))

    encoder = prompt_encoder(base.tokenizer, study.model)
    questions = [Question(encoder.encode_messages(item.messages), slot, ()) for slot, (_, item) in enumerate(asked, start=1)]
    texts = [""] * len(asked)
    try:
        with closing(inference_backend(base, [weights(spec) for spec, _ in asked])) as backend:
            for reply in backend.reply(questions, max_new_tokens=study.evaluation.max_new_tokens, batch_size=len(questions)):
                texts[reply.number] = str(base.tokenizer.decode(list(reply.ids), skip_special_tokens=True)).strip()
    except (RuntimeError, MemoryError) as error:
        if not is_allocation_failure(error):
            raise
        log.note("no sample answers: they do not fit the memory")
        return ()
    return tuple(Sample(spec.name, item.messages[-1].text, text, item.reference) for (spec, item), text in zip(asked, texts, strict=True))


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Write samples into a folder: as a table, samples.md, and a line each, samples.txt."""
    rows = [(sample.adapter, sample.prompt, sample.answer, sample.reference) for sample in samples]
    table = markdown_table(("adapter", "val prompt", "its answer", "own answer"), rows, right=(False,) * 4)
    write_durably(folder / "samples.md", table.encode())
    write_durably(folder / "samples.txt", "".join(f"{sample}\n" for sample in samples).encode())


def latest_samples(study_folder: Path) -> tuple[str, ...]:
    """Return the lines of the training that ended last; none before there are any."""
    files = sorted((study_folder / FOLDER).glob("*/samples.txt"), key=lambda file: file.stat().st_mtime)
    return tuple(files[-1].read_text(encoding="utf-8").splitlines()) if files else ()


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _MOST_CHARACTERS else f"{one_line[: _MOST_CHARACTERS - 1]}…"
