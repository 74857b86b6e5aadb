"""The engine's public functions: train many adapters on one base model, and answer with them in one batch."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.chat.messages import read_messages
from clusterlora.durable import make_folder, put_folder_in_place, write_durably
from clusterlora.engine import training
from clusterlora.engine.adapter_jobs import AdapterJob, training_jobs
from clusterlora.engine.base import BaseModel, frozen_base
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import all_replies, inference_backend
from clusterlora.engine.job import OnEpoch, TrainingJob, TrainingResult
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.memory import BatchSize
from clusterlora.engine.progress import CallbackProgress, Progress, ProgressLine, TrainingProgress
from clusterlora.engine.template_days import TemplateDays
from clusterlora.errors import BadData, BadSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_RECORD = "result.json"


def train_adapters(
    base: "BaseModel | PreTrainedModel | str | Path",
    jobs: Sequence[AdapterJob],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    folder: Path | str | None = None,
    max_length: int = 512,
    micro_batch: int | None = None,
    halve_micro_batch: bool = True,
    checkpointing: bool = False,
    progress: Progress | Callable[[TrainingProgress], None] | None = None,
    on_finished: Callable[[TrainingResult], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[TrainingResult]:
    """Train adapters on one frozen base and return them in the order of the jobs, each written as a PEFT folder.

    Jobs that can share slots are trained in one pass, each as if it were alone; those of other kinds follow one after another. Called again
    with the same folder after an interruption, it trains what is missing: finished adapters are taken over, others resume after the step of
    their last checkpoint (about a minute of work is repeated, and of kinds that train one after another, an epoch).

    Args:
        base: a transformers model, afterwards as it was before; or the name, folder or hub id of one.
        tokenizer: the model's, with its chat template; not needed for a base by name.
        folder: where the PEFT folders are written, one per job's name, and `.training/`, which holds what an interrupted call needs. A
            chat template that writes the date is given the day of the first call, and so it is when `generate` answers with them.
        max_length: tokens of the longest sequence, answer included; longer dialogues lose their oldest turns.
        micro_batch: dialogues of an adapter in a forward pass, by default the recipe's batch size. A smaller one takes less memory and
            gives the same adapters.
        halve_micro_batch: when memory runs out, go on with half the micro-batch instead of raising OutOfMemory.
        checkpointing: recompute activations in the backward pass: less memory, a third more time.
        progress: called with every step's `TrainingProgress`; by default a line on stderr with the time that is left.
        on_finished: called with each adapter as soon as it is written.
        on_epoch: called with an `UnfinishedAdapter` after every epoch but the last, for instance to let it answer (`generate`) before it
            goes on. Not for kinds that are trained one after another.

    Raises:
        BadSettings: a job, a recipe or the base is impossible; raised before anything is computed, and names the job.
        BadData: a dialogue cannot be learnt, or a job's folder holds another adapter. Likewise.
        ModelUnavailable: no such base, or its tokenizer has no chat template.
        TrainingDiverged: losses that are not finite; `adapters` names them. All other adapters are finished and written.
        OutOfMemory: a single dialogue does not fit; or the micro-batch does not, without `halve_micro_batch`.
    """
    if micro_batch is not None and micro_batch < 1:
        raise BadSettings(f"micro_batch = {micro_batch}: use at least 1, or leave it out for the recipe's batch size")
    with frozen_base(base, tokenizer) as frozen:
        days = TemplateDays(frozen.tokenizer)
        to_train = training_jobs(frozen, jobs, folder=_path(folder), max_length=max_length, days=days)
        targets = {job.name: (job, target) for job, target in to_train}
        results = {job.name: found for job, target in targets.values() if (found := _finished(job, target)) is not None}
        days.keep()
        reporter = _reporter(progress, [job for job, _ in targets.values()])

        def finish(result: TrainingResult) -> None:
            if isinstance(reporter, CallbackProgress):
                reporter.finish_adapter()
            if on_finished is not None:
                on_finished(result)

        for result in results.values():
            reporter.advance(result.job.total_steps)
            finish(result)
        missing = [job for job, _ in targets.values() if job.name not in results]
        size = micro_batch or max(job.recipe.batch_size for job, _ in targets.values())
        options = {"micro_batch": size, "halve_micro_batch": halve_micro_batch, "checkpointing": checkpointing}
        for trained in training.train(frozen, missing, run_log=reporter, on_epoch=on_epoch, **options):
            result = results[trained.name] = _written(trained, targets[trained.name][1])
            finish(result)
    return [results[job.name] for job in jobs]


def generate(
    base: "BaseModel | PreTrainedModel | str | Path",
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    adapters: Sequence[TrainingResult | Path | str | None] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_new_tokens: int = 64,
    max_length: int = 512,
    batch_size: int = 32,
) -> list[str]:
    """Return the greedy answer to each conversation, in order, each given by its own adapter.

    Rows of a batch have adapters of their own; those of kinds that cannot share a pass answer one after another. When memory runs out, it
    goes on with half the batch.

    Args:
        base: as for `train_adapters`; the base that the adapters were trained on.
        conversations: messages ({"role", "content"}), the last one the user's.
        adapters: one per conversation: what `train_adapters` returned, a PEFT folder, or None for the base alone.
        max_new_tokens: tokens of the longest answer.
        max_length: tokens of the longest prompt and answer; longer conversations lose their oldest turns, as in training.
        batch_size: conversations answered at once.

    Raises:
        BadSettings: there are not as many adapters as conversations, or the base is impossible.
        BadData: a conversation or an adapter cannot be used; names its number.
        ModelUnavailable: as for `train_adapters`.
        OutOfMemory: a single conversation does not fit.
    """
    if adapters is not None and len(adapters) != len(conversations):
        raise BadSettings(f"{len(adapters)} adapters for {len(conversations)} conversations; give each one of its own, or None")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise BadSettings(f"{name} = {value}: use at least 1")
    folders = [None if one is None else _folder_of(one) for one in adapters or [None] * len(conversations)]
    slot_by_folder = {folder: slot for slot, folder in enumerate(dict.fromkeys(filter(None, folders)), start=1)}
    with frozen_base(base, tokenizer) as frozen:
        days = TemplateDays(frozen.tokenizer)
        # The base alone is asked like the adapters beside it.
        day_by_folder = {folder: days.of((folder or next(iter(slot_by_folder), Path())).parent) for folder in dict.fromkeys(folders)}
        encoders = {day: PromptEncoder(frozen.tokenizer, max_length=max_length, date=day) for day in set(day_by_folder.values())}
        questions = [
            Question(_prompt(number, conversation, encoders[day_by_folder[folder]]), 0 if folder is None else slot_by_folder[folder], ())
            for number, (conversation, folder) in enumerate(zip(conversations, folders, strict=True))
        ]
        backend = inference_backend(frozen, [read_weights(folder) for folder in slot_by_folder])
        answers, size = [""] * len(questions), BatchSize(batch_size, name="batch size")
        try:
            for reply in all_replies(backend, questions, max_new_tokens=max_new_tokens, batch_size=size):
                answers[reply.number] = encoders[day_by_folder[folders[reply.number]]].words(reply.ids)
        finally:
            backend.close()
    return answers


def _prompt(number: int, conversation: Sequence[Mapping[str, Any]], encoder: PromptEncoder) -> tuple[int, ...]:
    try:
        turns = read_messages(conversation)
        prompt = encoder.encode_messages(turns) if turns else ()
    except BadData as problem:
        raise BadData(f"conversation {number}: {problem}") from problem
    if not turns or turns[-1].role != "user":
        raise BadData(f"conversation {number}: its last message is not the user's; end it with {{role: user, content: text}}")
    return prompt


def _folder_of(adapter: TrainingResult | Path | str) -> Path:
    return adapter.folder if isinstance(adapter, TrainingResult) else Path(adapter)


def _path(folder: Path | str | None) -> Path | None:
    return None if folder is None else Path(folder)


def _reporter(progress: Progress | Callable[[TrainingProgress], None] | None, jobs: Sequence[TrainingJob]) -> Progress:
    if isinstance(progress, Progress):
        return progress
    return CallbackProgress(progress or ProgressLine(), n_steps=sum(job.total_steps for job in jobs), n_adapters=len(jobs))


def _finished(job: TrainingJob, target: Path) -> TrainingResult | None:
    """Return the adapter in a job's folder if it was trained under the job's key; None if there is none.

    Raises:
        BadData: the folder holds something else.
    """
    if not target.exists():
        return None
    try:
        record = json.loads((job.scratch / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if record.get("key") != job.key:
        raise BadData(
            f"adapter {job.name!r}: {target} holds something else than this job would train (other data, recipe or base, or of unknown "
            "origin); remove it, or write to another folder"
        )
    return TrainingResult(job, target, tuple(record["losses"]), record["seconds"], tuple(record["val_losses"]))


def _written(result: TrainingResult, target: Path) -> TrainingResult:
    """Rename a finished adapter's folder into place, its record first and its checkpoint away after."""
    job = result.job
    record = {"key": job.key, "losses": result.losses, "val_losses": result.val_losses, "seconds": result.seconds}
    make_folder(target.parent)
    write_durably(job.scratch / _RECORD, json.dumps(record).encode())
    put_folder_in_place(result.folder, target)
    for left in job.scratch.iterdir():
        if left.name != _RECORD:
            left.unlink() if left.is_file() else shutil.rmtree(left)
    return TrainingResult(job, target, result.losses, result.seconds, result.val_losses)
