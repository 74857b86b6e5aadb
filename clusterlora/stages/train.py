"""Train or merge one group of adapters, and save each as soon as it is finished: store, tracker, database and the study's folder."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from clusterlora.adapters.learned import learned
from clusterlora.adapters.stored import is_stored, stored_config, stored_folder, stored_weights
from clusterlora.chat.encoder import TokenSequence
from clusterlora.data.prompts import messages, prompt_encoder
from clusterlora.data.retrieval import answers_with_shots
from clusterlora.engine.adapter_jobs import AdapterJob
from clusterlora.engine.job import TrainingResult, mean_by_step, total_steps
from clusterlora.engine.memory import device_name, peak_memory_bytes
from clusterlora.engine.peft_folder import write_factors
from clusterlora.errors import BadData, OutOfMemory, ServiceDown, TrainingDiverged
from clusterlora.models.base import base_revision
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.trials import DIVERGED, check_tuned, lost_trials, plan_of
from clusterlora.planning.work_plan import WorkPlan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.ports.study_store import DeviceUse
from clusterlora.ports.tracker import AdapterRun
from clusterlora.progress.cost import cost_metrics, study_cost
from clusterlora.progress.energy import joules
from clusterlora.progress.outcome import tagged_with_outcome
from clusterlora.progress.timing import Work, device_use, timed
from clusterlora.progress.training_log import TrainingLog
from clusterlora.requests import TrainingGroup, TrainRequest
from clusterlora.settings import Study
from clusterlora.stages.keep import Keeper
from clusterlora.stages.samples import TrainingSamples
from clusterlora.values import AdapterSpec, Attempt, LearningCurve, Ranking, Split, TrainedAdapter


def train_group(request: TrainRequest, stores: Stores, log: RunLog) -> int:
    """Return the number of adapters trained. Adapters already in the store under the same key are linked to the study instead.

    A micro-batch that ran out of this device's memory before, in any study on this base with this dtype and checkpointing, is not tried
    again: training starts smaller, unless `runtime.micro_batch` says where.

    Raises:
        OutOfMemory: an allocation failed; finished adapters are kept, and the next attempt resumes after the last checkpoint.
        TrainingDiverged: a loss is not finite, and not of a trial, whose recipe has then lost.
        BadSettings: the study tunes, and recipes of these adapters are not chosen yet.
    """
    state = read_state(request.study_name, stores)
    check_tuned(state, request.group)
    study, group = state.settings, request.group
    base, max_length = base_revision(study.model.base, study.model.quantisation), study.model.max_length
    device = f"{device_name()}, {study.model.dtype}{' with gradient checkpointing' if study.runtime.gradient_checkpointing else ''}"
    limit = None if study.runtime.micro_batch else stores.studies.memory_limit(base, device, max_length)
    if limit is not None and limit < request.micro_batch:
        again = f"if that was for another reason: --set runtime.micro_batch={request.micro_batch}"
        log.note(f"micro-batch {limit} instead of {request.micro_batch}: more did not fit {device} before; {again}")
        request = replace(request, micro_batch=limit)
    micro_batch, attempt = request.micro_batch, request.attempt
    stores.studies.open_attempt(study.name, Attempt(group.name, attempt, micro_batch, "running"))
    detail = ""
    try:
        with timed(stores, study.name, "train", group.name) as work:
            n_trained, lost = _train(request, state, stores, log, work)
        detail = DIVERGED + ", ".join(lost) if lost else ""
    except ServiceDown:
        # The attempt stays open: a retry resumes it after the last checkpoint.
        raise
    except Exception as error:
        ending = "out_of_memory" if isinstance(error, OutOfMemory) else "failed"
        if isinstance(error, OutOfMemory) and micro_batch > 1:
            # The next group on such a device starts with the micro-batch of this group's next attempt.
            stores.studies.save_memory_limit(base, device, max_length, micro_batch=micro_batch // 2)
        stores.studies.close_attempt(
            study.name, group.name, attempt, state=ending, detail=str(error), peak_memory_bytes=peak_memory_bytes()
        )
        raise
    stores.studies.close_attempt(study.name, group.name, attempt, state="done", detail=detail, peak_memory_bytes=peak_memory_bytes())
    return n_trained


def _train(request: TrainRequest, state: StudyState, stores: Stores, log: RunLog, work: Work) -> tuple[int, tuple[str, ...]]:
    """Return how many adapters were trained, and the trials whose training diverged."""
    study, group, micro_batch = state.settings, request.group, request.micro_batch
    plan = plan_of(state, group.rung, group.step)
    # A step's waves are planned before the first is trained: what a later one builds on may have diverged since.
    lost = lost_trials(state, plan) if group.step else frozenset[str]()
    specs = [plan.specs[name] for name in group.adapters if name not in lost and not _reuse(study, plan, name, stores)]
    if not specs:
        return 0, ()
    trained_by = plan.trained_by()
    method = ", ".join(sorted({trained_by[spec.name] for spec in specs}))
    tags = {"study": study.name, "method": method, "training_group": group.name}
    tags |= {"attempt": str(request.attempt), "micro_batch": str(micro_batch)}
    if specs[0].merge_of:
        return merge_adapters(state, plan, group, specs, tags=tags, stores=stores, log=log), ()
    from clusterlora.engine import train_adapters

    if gone := [spec.name for spec in specs if spec.kept]:
        raise BadData(
            f"study {study.name} goes on from adapters whose weights are lost: {', '.join(gone)}; bring them back with "
            f"`clusterlora study run --name {study.refresh.champion}`"
        )
    jobs = _jobs(state, plan, specs, stores)
    params = {"adapters": len(jobs), "personas": sum(len(spec.persona_ids) for spec in specs), **_common(specs)}
    with stores.tracker.adapter_run(study.name, name=group.title, params=params, tags=tags) as run, tagged_with_outcome(run):
        file = stores.folder(study.name) / "logs" / log_name(group.name)
        total = sum(total_steps(job.recipe, len(job.dialogues)) for job in jobs)
        with TrainingLog(log, file, total_steps=total, micro_batch=micro_batch) as run_log:
            began, energy = time.monotonic(), joules()
            run_log.phase(f"train {group.title}", total=total, unit="steps")
            base = base_model(study.model)
            samples = TrainingSamples(state, plan, specs, base, stores, run, run_log)

            results: list[TrainingResult] = []

            def finish(result: TrainingResult) -> None:
                results.append(result)
                work.train_tokens += result.train_tokens
                keeper.keep(_trained(plan.specs[result.name], result), result.folder, curves=_curves(result))
                if not result.loss_fell:
                    run_log.note(f"{result.name}: the train loss did not fall; the adapter has learned nothing")
                run_log.note(f"{result.name}: loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f} in {result.seconds:.1f} s")

            diverged: tuple[str, ...] = ()
            try:
                with Keeper(study, run, stores) as keeper:
                    train_adapters(
                        base,
                        jobs,
                        max_length=study.model.max_length,
                        micro_batch=micro_batch,
                        # The next attempt halves it, in a process of its own.
                        halve_micro_batch=False,
                        checkpointing=study.runtime.gradient_checkpointing,
                        progress=run_log,
                        on_finished=finish,
                        on_epoch=samples.after_epoch,
                    )
            except TrainingDiverged as error:
                if not all(plan.specs[name].is_trial for name in error.adapters):
                    raise
                diverged = error.adapters
                run_log.note(f"{error}; as trials they have lost")
            results.sort(key=lambda result: group.adapters.index(result.name))
            samples.at_end({result.name: result.epochs for result in results}, group=group.name)
        if results:
            _log_curves(run, plan, results, device_use("train", time.monotonic() - began, energy, work.train_tokens), study)
    return len(results), diverged


def _common(specs: Sequence[AdapterSpec]) -> dict[str, object]:
    """Return the hyper-parameters in which all these adapters agree."""
    first, *others = (asdict(spec.recipe) for spec in specs)
    return {name: value for name, value in first.items() if all(other[name] == value for other in others)}


def link_trained(state: StudyState, plan: WorkPlan, stores: Stores) -> None:
    """Link to a study the adapters of its plan that are trained already, perhaps by another study."""
    for name in plan.specs:
        _reuse(state.settings, plan, name, stores)


def _reuse(study: Study, plan: WorkPlan, name: str, stores: Stores) -> bool:
    """Return whether this adapter is trained already, perhaps by another study; if so, link it to this study."""
    adapter = stores.studies.adapter(plan.keys[name])
    if adapter is None or not is_stored(stores, adapter.key):
        return False
    stores.studies.save_adapter(study.name, replace(adapter, name=name, spec=plan.specs[name]))
    return True


def _jobs(state: StudyState, plan: WorkPlan, specs: Sequence[AdapterSpec], stores: Stores) -> list[AdapterJob]:
    study, personas = state.settings, state.dataset.by_id()
    encoder = prompt_encoder(base_model(study.model).tokenizer, study.model)

    def folder(name: str | None) -> Path | None:
        return stored_folder(stores, plan.keys[name]) if name else None

    # Cached, because most people's dialogues train several adapters.
    @cache
    def of_person(persona_id: str, split: Split, *, persona_in_prompt: bool, shots: int, ranking: Ranking) -> list[TokenSequence]:
        person, prompt = personas[persona_id], replace(study.model, persona_in_prompt=study.model.persona_in_prompt or persona_in_prompt)
        if shots:
            return encoder.encode_answers(answers_with_shots(prompt, person, split, ranking, embedder(study.model), shots))
        return encoder.encode_dialogues(messages(prompt, person, dialogue) for dialogue in person.of_split(split))

    def encoded(spec: AdapterSpec, split: Split) -> tuple[TokenSequence, ...]:
        if spec.learns_from and split == "train":
            shown = replace(study.model, persona_in_prompt=study.model.persona_in_prompt or spec.persona_in_prompt)
            named = ((person, dialogue) for person, dialogues in learned(spec, personas) for dialogue in dialogues)
            return tuple(encoder.encode_dialogues(messages(shown, person, dialogue) for person, dialogue in named))
        prompt = {"persona_in_prompt": spec.persona_in_prompt, "shots": spec.shots, "ranking": spec.ranking}
        return tuple(sequence for p in spec.persona_ids for sequence in of_person(p, split, **prompt))

    return [
        AdapterJob(
            name=spec.name,
            dialogues=encoded(spec, "train"),
            recipe=spec.recipe,
            val_dialogues=encoded(spec, "val") if spec.recipe.patience else (),
            init_from=folder(spec.init_from),
            frozen_adapter=folder(spec.frozen_adapter),
            folder=stores.adapters.scratch(plan.keys[spec.name]) / "trained",
            key=plan.keys[spec.name],
        )
        for spec in specs
    ]


def merge_adapters(
    state: StudyState,
    plan: WorkPlan,
    group: TrainingGroup,
    specs: Sequence[AdapterSpec],
    *,
    tags: Mapping[str, str],
    stores: Stores,
    log: RunLog,
) -> int:
    """Merge adapters, each weighted by its number of train dialogues; return how many merged adapters there are."""
    from clusterlora.adapters.merging import density_of, merge_factors

    study, personas = state.settings, state.dataset.by_id()
    merging = study.merging
    params = {"adapters": len(specs), "kind": merging.kind, "density": density_of(merging)}
    file = stores.folder(study.name) / "logs" / log_name(group.name)
    with (
        stores.tracker.adapter_run(study.name, name=group.title, params=params, tags=tags) as run,
        TrainingLog(log, file, total_steps=len(specs)) as run_log,
        Keeper(study, run, stores) as keeper,
    ):
        run_log.phase(group.title, total=len(specs), unit="adapters")
        for spec in specs:
            began = time.monotonic()
            parts = {plan.keys[part]: stored_weights(stores, plan.keys[part]).factors for part in spec.merge_of}
            configs = [stored_config(stores, key) for key in parts]
            n_dialogues = {plan.keys[p]: sum(len(personas[i].of_split("train")) for i in plan.specs[p].persona_ids) for p in spec.merge_of}
            # Adapters from elsewhere may have a larger rank than the study's: a merge of one is that one.
            rank = max(spec.recipe.rank, *(down.shape[0] for part in parts.values() for down, _ in part.values()))
            factors, energy = merge_factors(parts, n_dialogues, merging, rank=rank, seed=spec.recipe.seed)
            folder = stores.adapters.scratch(plan.keys[spec.name]) / "adapter"
            write_factors(folder, factors, replace(spec.recipe, rank=rank), base=study.model.base, configs=configs)
            # Nothing was trained: no steps, no tokens, no loss.
            adapter = TrainedAdapter(plan.keys[spec.name], spec.name, spec, 0, 0, time.monotonic() - began, math.nan, math.nan, 0)
            keeper.keep(adapter, folder)
            run.metrics({f"merge/energy_kept/{spec.name}": energy})
            run_log.advance(1, energy_kept=energy)
            run_log.note(f"{spec.name}: {merging.kind} of {len(parts)} adapters; rank {rank} keeps {energy:.1%} of its energy")
    return len(specs)


def _trained(spec: AdapterSpec, result: TrainingResult) -> TrainedAdapter:
    return TrainedAdapter(
        key=result.job.key,
        name=spec.name,
        spec=spec,
        steps=len(result.losses),
        train_tokens=result.train_tokens,
        seconds=result.seconds,
        first_loss=result.losses[0],
        last_loss=result.losses[-1],
        n_bytes=0,
    )


def _curves(result: TrainingResult) -> tuple[LearningCurve, ...]:
    train = LearningCurve("train", result.losses)
    return (train, LearningCurve("val", result.val_losses)) if result.val_losses else (train,)


def log_name(group: str) -> str:
    """Return the log file of a group: cluster-00 writes cluster_0_training.log."""
    return re.sub(r"-0*(?=\d)", "_", group).replace("-", "_") + "_training.log"


def _log_curves(run: AdapterRun, plan: WorkPlan, results: Sequence[TrainingResult], used: DeviceUse, study: Study) -> None:
    """Log speed, cost and the loss per step (on val: per epoch), averaged over adapters still training; of shared ones also their own."""
    run.curve("train/loss", list(enumerate(mean_by_step([result.losses for result in results]), start=1)))
    if any(result.val_losses for result in results):
        run.curve("val/loss", list(enumerate(mean_by_step([result.val_losses for result in results]), start=1)))
    if len(results) > 1:
        for name, losses in ((result.name, result.losses) for result in results if len(plan.specs[result.name].persona_ids) > 1):
            run.curve(f"train/loss/{name}", list(enumerate(losses, start=1)))
    tokens, seconds = sum(result.train_tokens for result in results), used.seconds
    speed = {"train/adapters": len(results), "train/tokens": tokens, "train/seconds": seconds, "train/tokens_per_second": tokens / seconds}
    run.metrics(speed | cost_metrics(study_cost([used], study.runtime)))
