"""What the caller of the engine asks for, adapters by name with their dialogues and recipes, and what the training loop makes of it."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clusterlora.chat.encoder import PromptEncoder, TokenSequence
from clusterlora.chat.messages import read_messages
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob
from clusterlora.engine.kinds import ADAPTER_KINDS, kind_of
from clusterlora.engine.template_days import TemplateDays
from clusterlora.errors import BadData, BadSettings
from clusterlora.models.quantised import has_quantised
from clusterlora.models.targets import block_weights, reach, resolved
from clusterlora.models.weights import file_sha256
from clusterlora.recipe import ALL_LINEAR, ENGINE_VERSION, Recipe, problems

log = logging.getLogger(__name__)

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text}"""
Dialogue = Sequence[Message] | TokenSequence
"""Messages, at least one of them the assistant's; or token ids of the caller's own rendering."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """One adapter to train.

    Args:
        name: names its folder: at most 128 letters, digits and . _ + -, a letter or digit first.
        dialogues: what it learns from. Every assistant message is learnt, given all before it in the chat template's rendering.
        recipe: its kind and hyper-parameters. Jobs of one call may differ in them.
        val_dialogues: with `recipe.patience`, the loss on them after each epoch decides when to stop and which epoch is kept.
        init_from: PEFT folder of an adapter of the same kind to start from; its rank is at most the recipe's.
        frozen_adapter: PEFT folder of an adapter that is active under this one and stays as it is (lora and rslora, both of them).
        folder: where its PEFT folder is written, if not at `folder/name` of the call.
        key: identifies everything that it is trained from. By default a hash of base, recipe, data and the adapters it builds on. A
            finished adapter is taken over, and an unfinished one resumed, only under the same key.
    """

    name: str
    dialogues: Sequence[Dialogue]
    recipe: Recipe = field(default_factory=Recipe)
    val_dialogues: Sequence[Dialogue] = ()
    init_from: Path | str | None = None
    frozen_adapter: Path | str | None = None
    folder: Path | str | None = None
    key: str | None = None


def training_jobs(
    base: BaseModel, jobs: Sequence[AdapterJob], *, folder: Path | None, max_length: int, days: TemplateDays
) -> list[tuple[TrainingJob, Path]]:
    """Return each job in token ids, and the PEFT folder it is to become; nothing has been computed or written yet.

    Raises:
        BadSettings: names, recipes, target modules or folders are impossible; BadData: dialogues or adapters are. Names the job.
    """
    if not jobs:
        raise BadSettings("jobs = []: nothing to train; pass at least one AdapterJob")
    _refuse_too_long(base, max_length)
    n_by_name = Counter(job.name for job in jobs)
    for job in jobs:
        wrong = list(_problems(job))
        if n_by_name[job.name] > 1:
            wrong.append("two jobs have this name; give each its own")
        if job.folder is None and folder is None:
            wrong.append("no folder to write it to; pass folder=")
        if wrong:
            raise BadSettings(f"adapter {job.name!r}: {wrong[0]}")
    jobs = _with_target_modules(base, jobs)
    targets = [Path(job.folder or Path(folder or ".") / job.name) for job in jobs]
    tokenised = all(isinstance(dialogue, TokenSequence) for job in jobs for dialogue in (*job.dialogues, *job.val_dialogues))
    day_of = {} if tokenised else {target.parent: days.of(target.parent) for target in targets}
    encoders = {day: PromptEncoder(base.tokenizer, max_length=max_length, date=day) for day in set(day_of.values())}
    return [
        _training_job(base, job, None if tokenised else encoders[day_of[target.parent]], target)
        for job, target in zip(jobs, targets, strict=True)
    ]


def _with_target_modules(base: BaseModel, jobs: Sequence[AdapterJob]) -> list[AdapterJob]:
    """Return the jobs with target modules that the base has; the log says, once each, what they leave without an adapter."""
    weights, recipes = block_weights(base.model), dict[Recipe, Recipe]()
    for job in jobs:
        if job.recipe in recipes:
            continue
        if job.recipe.kind == "ia3" and has_quantised(base.model):
            raise BadSettings(
                f"adapter {job.name!r}: recipe.kind = 'ia3': PEFT cannot take it off a quantised base again; use another kind"
            )
        try:
            recipe = recipes[job.recipe] = resolved(job.recipe, weights)
        except BadSettings as problem:
            raise BadSettings(f"adapter {job.name!r}: {problem}") from problem
        if words := reach(recipe, weights):
            log.warning("%s", words)
    return [replace(job, recipe=recipes[job.recipe]) for job in jobs]


def _training_job(base: BaseModel, job: AdapterJob, encoder: PromptEncoder | None, target: Path) -> tuple[TrainingJob, Path]:
    sequences, val = _encoded(job.name, job.dialogues, encoder), _encoded(job.name, job.val_dialogues, encoder)
    init_from, frozen = (None if other is None else Path(other) for other in (job.init_from, job.frozen_adapter))
    return TrainingJob(
        key=job.key or _key(base, job.recipe, sequences, val, [init_from, frozen]),
        name=job.name,
        recipe=job.recipe,
        sequences=sequences,
        scratch=target.parent / ".training" / target.name,
        init_from=init_from,
        frozen_adapter=frozen,
        val=val if job.recipe.patience else (),
    ), target


def _problems(job: AdapterJob) -> Iterator[str]:
    recipe = job.recipe
    if not _NAME.fullmatch(job.name):
        yield "use at most 128 letters, digits and . _ + -, a letter or digit first"
    yield from problems(recipe)
    if recipe.kind not in ADAPTER_KINDS:
        yield f"recipe.kind = {recipe.kind!r}: use one of {', '.join(ADAPTER_KINDS)}"
        return
    if not recipe.target_modules and recipe.kind != "prefix":
        yield f"recipe.target_modules = (): an adapter with nothing to change; name linear layers such as q_proj, or {ALL_LINEAR}"
    if not job.dialogues:
        yield "it has no dialogues to learn from; leave it out"
    if recipe.patience and not job.val_dialogues:
        yield f"recipe.patience = {recipe.patience} needs val_dialogues; pass some, or leave patience out"
    kind = ADAPTER_KINDS[recipe.kind]
    if job.init_from is not None:
        start = kind_of(Path(job.init_from))
        if start is not kind:
            yield f"init_from {job.init_from} is of kind {start.name}, the recipe of kind {kind.name}; make them agree"
        elif (rank := _rank(Path(job.init_from))) > recipe.rank:
            yield f"init_from {job.init_from} has rank {rank}; raise recipe.rank = {recipe.rank} to it"
    if job.frozen_adapter is not None and not (kind.is_additive and kind_of(Path(job.frozen_adapter)).is_additive):
        yield f"frozen_adapter {job.frozen_adapter}: only adapters of the kinds lora and rslora can be active together"


def _rank(folder: Path) -> int:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return int(config.get("r") or config.get("num_virtual_tokens") or 0)


def _refuse_too_long(base: BaseModel, max_length: int) -> None:
    n_positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if max_length < 1 or (n_positions is not None and max_length > n_positions):
        raise BadSettings(f"max_length = {max_length}: use 1 to {n_positions}, the positions of base {base.name}")


def _encoded(name: str, dialogues: Sequence[Dialogue], encoder: PromptEncoder | None) -> tuple[TokenSequence, ...]:
    sequences: list[TokenSequence] = []
    for number, dialogue in enumerate(dialogues):
        try:
            if isinstance(dialogue, TokenSequence):
                sequences.append(dialogue)
            else:
                assert encoder is not None, "messages without an encoder"
                sequences += encoder.encode_dialogues([read_messages(dialogue)])
        except BadData as problem:
            raise BadData(f"adapter {name!r}, dialogue {number}: {problem}") from problem
        if not sequences[-1].n_response_tokens:
            raise BadData(f"adapter {name!r}, dialogue {number}: it has no response token to learn; leave it out")
    return tuple(sequences)


def _key(
    base: BaseModel, recipe: Recipe, sequences: Sequence[TokenSequence], val: Sequence[TokenSequence], adapters: Sequence[Path | None]
) -> str:
    others = [None if folder is None else file_sha256(folder / "adapter_model.safetensors") for folder in adapters]
    rows = [[(sequence.ids, sequence.is_response) for sequence in split] for split in (sequences, val if recipe.patience else ())]
    content = json.dumps([ENGINE_VERSION, base.revision, str(base.model.dtype), asdict(recipe), rows, others])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
