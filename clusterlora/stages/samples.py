"""What adapters answer while they are trained: a few val prompts per training, for people to read. No result depends on them."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.stored import stored_weights
from clusterlora.data.prompts import items, prompt_encoder
from clusterlora.durable import write_durably
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.job import UnfinishedAdapter
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.memory import is_allocation_failure
from clusterlora.engine.stacked import Weights
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.ports.tracker import AdapterRun
from clusterlora.values import AdapterSpec, Item, WeightedAdapter

FOLDER = "samples"
"""Folder of a study with a file per training, for `watch`; in MLflow a folder of the training's run."""
SECONDS_BETWEEN = 20.0
"""An adapter is asked after an epoch if it was not asked for so long: where epochs are short, answering would cost more than they do."""
_MOST_CHARACTERS = 300
MOST_ASKED = 64
"""Adapters of a training that are asked: nobody reads the answers of thousands, and these are in memory at once."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An adapter's answer to a val prompt of one of its people, beside the person's own."""

    adapter: str
    epoch: int
    """Epochs that the adapter had been trained for."""
    prompt: str
    answer: str
    reference: str

    def __str__(self) -> str:
        after = f"{self.adapter} after epoch {self.epoch}"
        return f"{after} on val: {_short(self.prompt)!r} -> {_short(self.answer)!r} (own answer: {_short(self.reference)!r})"


class TrainingSamples:
    """Answers of a training's adapters to one val prompt each: of the first, as many as `runtime.samples`, after epochs, of all at the end;
    of more than `MOST_ASKED` adapters, evenly spaced ones.

    They go to the tracker's run and to the study's folder, those of the first to the log as well. Adapters that learn with exchanges in the
    prompt are left out, and trials of recipes.
    """

    def __init__(
        self, state: StudyState, plan: WorkPlan, specs: Sequence[AdapterSpec], base: BaseModel, stores: Stores, run: AdapterRun, log: RunLog
    ) -> None:
        """Choose adapters and prompts; `run` and `log` are those of the training."""
        self._study, self._plan, self._base, self._stores, self._run, self._log = state.settings, plan, base, stores, run, log
        n_watched = self._study.runtime.samples
        asked = [] if n_watched is None else [spec for spec in specs if not (spec.shots or spec.is_trial)]
        if len(asked) > MOST_ASKED:
            asked = [asked[round(i * (len(asked) - 1) / (MOST_ASKED - 1))] for i in range(MOST_ASKED)]
        self._asked = _prompts(state, asked)
        self._encoder = prompt_encoder(base.tokenizer, self._study.model)
        self._last = dict.fromkeys(list(self._asked)[:n_watched], time.monotonic())

    def after_epoch(self, adapter: UnfinishedAdapter) -> None:
        """Ask an adapter that goes on, unless it was asked a short time ago."""
        name = adapter.job.name
        if name in self._last and time.monotonic() - self._last[name] > SECONDS_BETWEEN:
            folder = adapter.write()
            self._ask({name: adapter.epoch}, lambda _: read_weights(folder), in_folder=f"{name}-epoch-{adapter.epoch}")
            self._last[name] = time.monotonic()

    def at_end(self, epoch_by_name: Mapping[str, int], *, group: str) -> None:
        """Ask the adapters that are finished and stored, `epoch_by_name`."""
        finished = {name: epoch_by_name[name] for name in self._asked if name in epoch_by_name}
        self._ask(finished, self._stored, in_folder=group)

    def _stored(self, name: str) -> Weights:
        return stored_weights(self._stores, self._plan.keys[name])

    def _ask(self, epoch_by_name: Mapping[str, int], weights_of: Callable[[str], Weights], *, in_folder: str) -> None:
        answers = self._answers(list(epoch_by_name), weights_of)
        samples = [
            Sample(name, epoch_by_name[name], item.messages[-1].text, answers[name], item.reference)
            for name, (_, item) in self._asked.items()
            if name in answers
        ]
        watched = [sample for sample in samples if sample.adapter in self._last]
        for sample in watched:
            self._log.note(str(sample))
        if samples:
            folder = self._stores.folder(self._study.name) / FOLDER / in_folder
            write_samples(folder, samples, watched)
            self._run.artifacts(folder, f"{FOLDER}/{in_folder}")

    def _answers(self, names: Sequence[str], weights_of: Callable[[str], Weights]) -> dict[str, str]:
        """Return each adapter's answer, by name; none where they do not fit the memory."""

        def weights(spec: AdapterSpec) -> Weights:
            used = [spec.name, *((spec.frozen_adapter,) if spec.frozen_adapter else ())]
            weighted = [WeightedAdapter(name) for name in used]
            return combined_weights(weighted, lambda name: weights_of(name) if name == spec.name else self._stored(name))

        asked = [self._asked[name] for name in names]
        questions = [Question(self._encoder.encode_messages(item.messages), slot, ()) for slot, (_, item) in enumerate(asked, start=1)]
        n_tokens, texts = self._study.evaluation.max_new_tokens, [""] * len(asked)
        try:
            with closing(inference_backend(self._base, [weights(spec) for spec, _ in asked])) as backend:
                for reply in backend.reply(questions, max_new_tokens=n_tokens, batch_size=len(questions)):
                    texts[reply.number] = str(self._base.tokenizer.decode(list(reply.ids), skip_special_tokens=True)).strip()
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise
            self._log.note("no sample answers: they do not fit the memory")
            return {}
        return dict(zip(names, texts, strict=True))


def _prompts(state: StudyState, specs: Sequence[AdapterSpec]) -> dict[str, tuple[AdapterSpec, Item]]:
    """Return adapters by name with the first val item of their people; those without one are left out."""
    study, personas = state.settings, state.dataset.by_id()
    asked: dict[str, tuple[AdapterSpec, Item]] = {}
    for spec in specs:
        model = replace(study.model, persona_in_prompt=study.model.persona_in_prompt or spec.persona_in_prompt)
        of_its_people = (item for persona_id in spec.persona_ids for item in items(model, personas[persona_id], "val"))
        if (item := next(of_its_people, None)) is not None:
            asked[spec.name] = (spec, item)
    return asked


def write_samples(folder: Path, samples: Sequence[Sample], watched: Sequence[Sample]) -> None:
    """Write samples into a folder: as a table, samples.md, and those that are watched a line each, samples.txt."""
    rows = [(sample.adapter, str(sample.epoch), sample.prompt, sample.answer, sample.reference) for sample in samples]
    table = markdown_table(("adapter", "epoch", "val prompt", "its answer", "own answer"), rows, right=(False, True, False, False, False))
    write_durably(folder / "samples.md", table.encode())
    write_durably(folder / "samples.txt", "".join(f"{sample}\n" for sample in watched).encode())


def latest_samples(study_folder: Path) -> tuple[str, ...]:
    """Return the lines of the answers that were given last; none before there are any."""
    files = sorted((study_folder / FOLDER).glob("*/samples.txt"), key=lambda file: file.stat().st_mtime)
    return tuple(files[-1].read_text(encoding="utf-8").splitlines()) if files else ()


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _MOST_CHARACTERS else f"{one_line[: _MOST_CHARACTERS - 1]}…"
