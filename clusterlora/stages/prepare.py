"""Read, check and split the data, then record the study. Nothing is recorded when any of it is unusable."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from clusterlora import __version__
from clusterlora.adapters.stored import replace_damaged
from clusterlora.chat.template import unread_arguments
from clusterlora.comparison.power import expected_clusters, study_power, why_no_power
from clusterlora.data.prompt_fit import PromptFit
from clusterlora.durable import make_folder
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.metadata import Cut, DataWarnings, Provenance, TrackerPage, Tuning
from clusterlora.models.base import UsableBase, base_revision, faster_dtype, slow_processor, usable_base
from clusterlora.models.targets import reach, resolved
from clusterlora.planning.cut import cut_to
from clusterlora.planning.ladder import REFERENCE
from clusterlora.planning.recipes import draw_recipes
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import timed
from clusterlora.settings import PreparedStudy, Study, chosen_base
from clusterlora.stages.base_checks import decided, fitted_dataset
from clusterlora.stages.forgotten import who_left
from clusterlora.stages.model_fit import refuse_misfits
from clusterlora.stages.pairwise import leaves_the_machine, preferences_of_people
from clusterlora.stages.refresh import refreshed, save_refresh
from clusterlora.stores.resume import as_decided
from clusterlora.study_checks import problems_of_new
from clusterlora.values import Dataset

_NEGLIGIBLE = 0.01
"""Share of the blocks' weights that may stay as they are without a word."""


def prepare_study(settings: Study, stores: Stores, log: RunLog, *, running: bool = True) -> Dataset:
    """Return the study's split data set, recorded with its provenance; preparing it again changes nothing.

    Damaged adapters on this machine are downloaded again, or will be trained again.

    Args:
        running: whether to set the study's status to running; a single step leaves the status as it is.

    Raises:
        BadData: every problem of the data at once, or of its judge's preferences, or the study already holds other data.
        BadSettings: the study exists with other settings, a new one lacks some, or a model does not know the language of its data.
        ModelUnavailable: the base model is not available here.
    """
    began = time.monotonic()
    log.phase("prepare", total=1, unit="data set")
    preferences_of_people(settings)
    if stored_study(settings.name, stores) is None and (lines := list(problems_of_new(settings))):
        raise BadSettings("\n".join(lines))
    study, base = as_prepared(settings, stores)
    refresh = refreshed(study, base.tokenizer, stores) if study.refresh.of else None
    dataset, fit = (refresh.dataset, refresh.fit) if refresh else fitted_dataset(study, base.tokenizer, who_left(study, stores))
    of_dialogues = tuple(_fit_sentences(fit, study))
    for sentence in (*(refresh.sentences if refresh else ()), *of_dialogues):
        log.note(sentence)
    if sentence := leaves_the_machine(study):
        log.note(sentence)
    for sentence in _base_sentences(study, base):
        log.note(sentence)
    recorded = None if stored_study(study.name, stores) is None else stores.studies.metadata(study.name, DataWarnings) or DataWarnings()
    if recorded is None and settings.model.dtype == "auto" and (words := slow_processor(base.name)):
        log.note(words)
    of_models = recorded.of_models if recorded is not None else refuse_misfits(study, base, dataset.personas, log)
    cut = None if recorded is None else stores.studies.metadata(study.name, Cut)
    studied = dataset if cut is None else cut_to(dataset, cut)
    made_from = Provenance(
        clusterlora_version=__version__,
        git_revision=git_revision(),
        data_digest=dataset.digest,
        base_revision=base_revision(base.name),
        n_personas=len(studied.personas),
        n_dialogues=studied.n_dialogues,
        n_dialogues_left_out=fit.n_unfit,
        n_dialogues_losing_turns=fit.n_losing_turns,
        n_base_tokens=len(base.tokenizer),
    )
    stores.studies.create_study(study)
    with timed(stores, study.name, "prepare", since=began):
        stores.studies.save_dataset(study.name, dataset)
        # Recorded after the data: save_dataset refuses data other than the study's.
        if refresh is not None:
            save_refresh(study, refresh, stores)
        stores.studies.save_metadata(study.name, made_from)
        stores.studies.save_metadata(study.name, DataWarnings(of_models=of_models, of_dialogues=of_dialogues))
        if study.tune and stores.studies.metadata(study.name, Tuning) is None:
            # Drawn once: what a study has tried does not change with the version of a library.
            targets = resolved(study.recipe, base.weights).target_modules
            stores.studies.save_metadata(study.name, Tuning(draw_recipes(study, targets)))
        start_tracking(study, made_from, studied, stores, running=running)
        if running:
            stores.studies.set_status(study.name, "running")
        replace_damaged(study.name, stores, log)
        make_folder(stores.folder(study.name))
    log.advance(1, personas=len(studied.personas))
    n_personas = len(studied.personas)
    power = study_power(study.methods, REFERENCE, n_personas, clusters=expected_clusters(study.clustering, n_personas))
    if power or REFERENCE not in study.methods:
        log.note(power.sentence if power else why_no_power(study.methods, REFERENCE))
    return dataset


def start_tracking(study: PreparedStudy, made_from: Provenance, dataset: Dataset, stores: Stores, *, running: bool) -> None:
    """Start a study in the tracker, and record where its page is."""
    tags = {"study": study.name} | {name: str(value) for name, value in asdict(made_from).items() if value is not None}
    stores.tracker.start_study(study.name, params=asdict(study), tags=tags, dataset=dataset, running=running)
    stores.studies.save_metadata(study.name, TrackerPage(stores.tracker.page(study.name)))


def _base_sentences(study: PreparedStudy, base: UsableBase) -> Iterator[str]:
    """Yield what of a study's settings does not reach its base model or the model's chat template, if anything."""
    if unread := unread_arguments(base.tokenizer, study.model.template_arguments):
        yield f"warning: model.template_arguments: the chat template of {base.name} never mentions {', '.join(unread)}"
    if words := reach(study.recipe, base.weights):
        yield words
    if study.model.quantisation != "none" and base.quantisable_share < 1 - _NEGLIGIBLE:
        yield (
            f"model.quantisation = {study.model.quantisation} reaches {base.quantisable_share:.0%} of the weights in the base's blocks; "
            f"the others stay in {study.model.dtype}"
        )


def _fit_sentences(fit: PromptFit, study: PreparedStudy) -> Iterator[str]:
    """Yield how many dialogues the base model's chat template and maximum length leave out or shorten, if any."""
    if fit.n_unfit:
        yield f"{fit.n_unfit} of {fit.n_dialogues} dialogues cannot be asked of the base model and are left out"
    if fit.n_losing_turns:
        yield f"{fit.n_losing_turns} of {fit.n_dialogues} dialogues are longer than {study.model.max_length} tokens and lose old turns"
    if fit.folds_system_text:
        yield "the chat template has no system role: the system text leads the first user turn"


def provenance(study_name: str, stores: Stores) -> Provenance:
    """Return the code, data and base model of a study's last preparation.

    Raises:
        UnknownName: it was not prepared.
    """
    recorded = stores.studies.metadata(study_name, Provenance)
    if recorded is None:
        raise UnknownName(f"study {study_name!r} has no data yet; prepare it first")
    return recorded


def as_prepared(study: Study, stores: Stores) -> tuple[PreparedStudy, UsableBase]:
    """Return the study with everything decided that its settings leave open, as it was first prepared or else here, and its base model.

    Raises:
        BadSettings, BadData: as `decided`.
        ModelUnavailable: the base model is not available here.
    """
    if (recorded := stored_study(study.name, stores)) is not None:
        study = as_decided(study, recorded)
    base = usable_base(chosen_base(study), study.model.quantisation, study.model.device_map)
    return decided(study, faster_dtype(base.name) if study.model.dtype == "auto" else study.model.dtype, base), base


def stored_study(name: str, stores: Stores) -> PreparedStudy | None:
    """Return the stored study of a name; None if there is none."""
    return stores.studies.study(name) if any(name == stored for stored, *_ in stores.studies.studies()) else None


def git_revision() -> str | None:
    """Return the commit this code was checked out at; None outside a checkout or without git."""
    try:
        completed = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return completed.stdout.strip() or None
