"""What a study is made from, checked before any server starts: base and embedding model, data, targets, lengths, pool, preferences."""

from dataclasses import replace
from typing import TYPE_CHECKING

from clusterlora.cli.child import in_child
from clusterlora.cli.choose_base import with_base
from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.orchestration import deployments, services_home
from clusterlora.cli.progress import console_log

if TYPE_CHECKING:
    from clusterlora.settings import Study


def with_usable_inputs(study: "Study") -> "Study":
    """Return the study with its base model; raise for one that cannot be used, or such data, before any server is started."""
    from clusterlora.config import check
    from clusterlora.models.base import BASE_MODELS, base_revision
    from clusterlora.models.embedding import embedding_folder
    from clusterlora.settings import chosen_base

    stores = open_local_stores()
    check(study, is_new=all(study.name != name for name, *_ in stores.studies.studies()))
    study = with_base(study, stores)
    if study.refresh.root is not None:
        # Its data are recorded, joined to those of before.
        return study
    deployments("launch").refuse_unknown_pool(study.runtime.gpu_pool, home=services_home())
    if study.data.path is None and chosen_base(study) in BASE_MODELS and _fits_as_it_comes(study):
        base_revision(chosen_base(study))
        embedding_folder(study.model.embedding)
        _refuse_unusable_preferences(study)
        return study
    # The base and the data are read again where they are used; this command then waits, for hours.
    in_child(lambda: _refuse_unusable(study), doing="checking data and base model")
    return study


def _fits_as_it_comes(study: "Study") -> bool:
    """Return whether a study sets nothing that its base or its embedding model might not take: then no model needs to be opened."""
    from clusterlora.recipe import Recipe
    from clusterlora.settings import ModelSettings

    as_it_comes = replace(ModelSettings(), base=study.model.base, dtype=study.model.dtype)
    return (
        study.model == as_it_comes
        and study.recipe.target_modules == Recipe().target_modules
        and study.evaluation.max_new_tokens is None
        and study.clustering.algorithm != "description"
    )


def _refuse_unusable(study: "Study") -> None:
    from clusterlora.models.embedding import refuse_unusable_embedder
    from clusterlora.stages.base_checks import fitted_dataset
    from clusterlora.stages.model_fit import refuse_misfits
    from clusterlora.stages.prepare import as_prepared, stored_study

    stores = open_local_stores()
    _refuse_unusable_preferences(study)
    settings, base = as_prepared(study, stores)
    refuse_unusable_embedder(settings.model.embedding)
    dataset, _ = fitted_dataset(settings, base.tokenizer)
    if stored_study(study.name, stores) is None:
        with console_log() as log:
            refuse_misfits(settings, base, dataset.personas, log)


def _refuse_unusable_preferences(study: "Study") -> None:
    if study.judge.preferences is not None:
        # Its statistics take half a second to import.
        from clusterlora.stages.pairwise import preferences_of_people

        preferences_of_people(study)
