"""What settings may not say together: a line per problem, each naming the field, its value and the fix."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any, cast
from urllib.parse import urlsplit

from clusterlora.catalog import Catalog
from clusterlora.chat.source import frozen_source
from clusterlora.errors import BadSettings, harmless
from clusterlora.method_settings import MergeSettings
from clusterlora.recipe import MOST_RANK
from clusterlora.settings import Lengths, Study, check_study_name

_RUNGS_OF_EVERY_STUDY = r"own|asked-\d+|trial-.*"
"""Rungs that no ladder may list: the study's own configuration (`planning/ladder.py`), those of decisions (`planning/decisions.py`), and
those of trials (`planning/trials.py`)."""

_MODEL_OF_A_STUDY = re.compile(r"(.+)-((?:imported-)?(?:unified|per-persona)|prefix|(?:cluster|merged|imported|imported-merged)-\d+)")
"""Names that a study's models are registered under beside its champion, which has the study's own: as `stages/register.py` makes them."""
_DATABASE = "clusterlora.db"
"""File of the database beside the folders of the studies; SQLite keeps others with longer names there."""


def problems(study: Study) -> Iterator[str]:
    """Yield every impossible combination of a study's settings."""
    yield from chain(
        _text_problems("", asdict(study)),
        _name_problems(study),
        _people_problems(study),
        _task_problems(study),
        _judge_problems(study),
        _template_problems(study),
        _kind_problems(study),
        _gate_problems(study),
        _retrieval_problems(study),
        _tuning_problems(study),
        merging_problems(study.merging),
        _run_problems(study),
        _refresh_problems(study),
    )


def _refresh_problems(study: Study) -> Iterator[str]:
    """Yield what is missing of a refresh, and the champion of before where there is none."""
    from clusterlora.methods import METHODS

    refresh = study.refresh
    given = {name: getattr(refresh, name) for name in ("root", "number", "of", "champion", "champion_method")}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        yield f"refresh.{missing[0]}: missing beside the others; `clusterlora study refresh NAME --data FILE` fills all of them in"
    if missing:
        for name in (name for name in study.methods if name in METHODS and METHODS[name].needs_refresh):
            yield f"methods: {name} is in a refresh alone; leave it out, or run: clusterlora study refresh NAME --data FILE"
    if not missing and study.seeds > 1:
        yield f"seeds = {study.seeds}: a refresh goes on from one training of every adapter; set it to 1"


def _text_problems(path: str, value: object) -> Iterator[str]:
    """Yield every text that cannot be stored, as it is no UTF-8, or that a terminal would obey where it is shown."""
    if isinstance(value, Mapping):
        for name, part in cast("Mapping[str, object]", value).items():
            yield from _text_problems(f"{path}.{name}" if path else name, part)
    elif isinstance(value, tuple):
        for part in cast("tuple[object, ...]", value):
            yield from _text_problems(path, part)
    elif isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        yield f"{path} = {value!r}: holds what is no UTF-8 text; write it in UTF-8"
    elif isinstance(value, str) and not path.endswith("system_prompt"):
        # A column's name is as the file has it.
        if harmless(value) != value:
            yield f"{path} = {value!r}: holds control characters, which a terminal obeys; remove them"
        elif not path.startswith("data.columns") and "".join(value.splitlines()) != value:
            yield f"{path} = {value!r}: holds line breaks; rename what it names so that it is one line"


def _name_problems(study: Study) -> Iterator[str]:
    # Imported late: the catalogs import numpy and more, which reading a preset does not need.
    from clusterlora.clustering import ALGORITHMS, AUTO
    from clusterlora.data import SOURCES
    from clusterlora.engine.kinds import ADAPTER_KINDS
    from clusterlora.evaluation.metrics import METRICS
    from clusterlora.methods import METHODS, controls

    try:
        check_study_name(study.name)
    except BadSettings as problem:
        yield str(problem)
    if of_model := _MODEL_OF_A_STUDY.fullmatch(study.name):
        yield (
            f"name = {study.name!r}: models of study {of_model[1]!r} are registered as {of_model[1]}-{of_model[2]} and the like, and this "
            "study's champion would share their names; choose another name"
        )
    if study.name.startswith(_DATABASE):
        yield f"name = {study.name!r}: names that begin with {_DATABASE} belong to the files of the database; choose another name"
    evaluation = study.evaluation
    lists: tuple[tuple[str, tuple[str, ...], Catalog[Any]], ...] = (
        ("methods", study.methods, METHODS),
        ("evaluation.metrics", evaluation.metrics, METRICS),
        ("data.source", (study.data.source,), SOURCES),
        *((("clustering.algorithm", (study.clustering.algorithm,), ALGORITHMS),) if study.clustering.algorithm != AUTO else ()),
        ("recipe.kind", (study.recipe.kind,), ADAPTER_KINDS),
    )
    for path, names, catalog in lists:
        if not names:
            yield f"{path} = []: nothing to do; name at least one of {', '.join(catalog)}"
        for name in names:
            if name not in catalog:
                close = difflib.get_close_matches(name, catalog, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(catalog)}"
                yield f"{path} = {name!r}: unknown {catalog.kind}; {hint}"
        for name in {name for name in names if names.count(name) > 1}:
            yield f"{path}: {name!r} is listed twice; list it once"
    if study.methods and all(name in controls() for name in study.methods):
        yield f"methods = {list(study.methods)}: controls alone, none of which can be champion; add what they control"
    measured = {name: getattr(evaluation, name) for name in ("headline", "second_headline", "selection_metric")}
    for path, name in measured.items():
        if name is not None and name not in evaluation.metrics:
            yield f"evaluation.{path} = {name!r}: not measured; add it to evaluation.metrics or use {' or '.join(evaluation.metrics)}"
    if evaluation.headline in METRICS and not METRICS[evaluation.headline].can_decide:
        use = "accuracy or mae" if METRICS[evaluation.headline].pooled else "a similarity, likelihood or nll"
        why = "is no mean over items" if METRICS[evaluation.headline].pooled else "does not say which answers are better"
        yield f"evaluation.headline = {evaluation.headline!r}: {why}; use {use}"
    elif evaluation.headline in METRICS and not METRICS[evaluation.headline].percent:
        for name in ("mean_similarity", "worst_persona"):
            if (threshold := getattr(study.gate, name)) is not None:
                yield (
                    f"gate.{name} = {threshold}: asks for a percentage, and evaluation.headline = {evaluation.headline!r} is none; "
                    f"--set gate.{name}=none, or use another headline"
                )

    second = evaluation.second_headline
    if second == evaluation.headline:
        yield f"evaluation.second_headline = {second!r}: is the headline already; name another metric or leave it out"
    if study.gate.second_headline and second is None:
        yield "gate.second_headline = true: evaluation.second_headline names no metric; name one or leave it out"
    elif study.gate.second_headline and second in METRICS:
        metric = METRICS[str(second)]
        if not (metric.percent and metric.higher_is_better):
            yield f"gate.second_headline = true: the gate compares percentages of which more is better, not {second}; name another metric"


def _task_problems(study: Study) -> Iterator[str]:
    """Yield what makes no sense for what the study's people are answered with."""
    from clusterlora.data.labels import MOST_LABELS, is_number
    from clusterlora.evaluation.metrics import METRICS

    data, task = study.data, study.data.task
    if task != "text" and data.source in ("synthetic", "edgewise"):
        yield f"data.task = {task!r}: the people of the source {data.source} are answered in text; use table or lamp, or leave it out"
    for name in (name for name in study.evaluation.metrics if name in METRICS):
        metric = METRICS[name]
        if metric.tasks and task not in metric.tasks:
            yield f"evaluation.metrics: {name} scores answers of data.task = {' or '.join(metric.tasks)}, not {task}; leave it out"
        elif task != "text" and metric.reads_answers:
            yield f"evaluation.metrics: {name} reads generated text, and with data.task = {task!r} nothing is generated; leave it out"
    for field in ("headline", "second_headline", "selection_metric"):
        name = getattr(study.evaluation, field)
        if name in METRICS and METRICS[name].pooled is not None and field != "headline":
            yield f"evaluation.{field} = {name!r}: is no mean over items that could be compared person by person; use accuracy or mae"
    if data.canaries is not None and task != "text":
        yield f"data.canaries = {data.canaries}: canaries are texts, and with data.task = {task!r} answers are not; leave it out"
    if data.labels and task == "text":
        yield f"data.labels = {list(data.labels)}: answers are text; set data.task to label or rating, or leave it out"
    for label in dict.fromkeys(label for label in data.labels if data.labels.count(label) > 1):
        yield f"data.labels: {label!r} is listed twice; list it once"
    if data.labels and not 2 <= len(set(data.labels)) <= MOST_LABELS:
        yield f"data.labels has {len(set(data.labels))} entries; list 2 to {MOST_LABELS}"
    for label in (label for label in data.labels if task == "rating" and not is_number(label)):
        yield f"data.labels: {label!r} is no number, as a rating is; correct it or set data.task=label"


def _judge_problems(study: Study) -> Iterator[str]:
    judge, asked = study.judge, "judge" in study.evaluation.metrics
    missing = [name for name in ("address", "model") if getattr(judge, name) is None]
    if asked and missing:
        yield (
            f"evaluation.metrics: judge asks a language model, and judge.{missing[0]} is missing; "
            "--set judge.address=http://127.0.0.1:8000/v1 --set judge.model=NAME, or leave it out"
        )
    if judge.address is not None and not _is_web_address(judge.address):
        yield f"judge.address = {judge.address!r}: is no address; write it as http://HOST:PORT/v1, or with https://"
    if asked and "unified" not in study.methods:
        yield "evaluation.metrics: judge compares with unified, which is not among the methods; add it or leave judge out"
    for field in ("second_headline", "selection_metric"):
        if getattr(study.evaluation, field) == "judge":
            yield f"evaluation.{field} = 'judge': is known on test alone, when methods are compared; name another metric"


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an end, or a port that is no number
        return False


def _template_problems(study: Study) -> Iterator[str]:
    try:
        frozen_source("", study.model.template_arguments, study.model.template_date)
    except BadSettings as problem:
        yield str(problem)


def _kind_problems(study: Study) -> Iterator[str]:
    from clusterlora.clustering import PREREQUISITES
    from clusterlora.engine.kinds import ADAPTER_KINDS
    from clusterlora.methods import METHODS

    kind = study.recipe.kind
    yield from _width_problems(study)
    if kind == "ia3" and study.model.quantisation != "none":
        yield (
            f"recipe.kind = 'ia3' and model.quantisation = {study.model.quantisation!r}: PEFT cannot take such adapters off a quantised "
            "base again; use another kind, or none"
        )
    if study.model.device_map != "none" and (kind == "prefix" or "prefix" in study.methods):
        yield (
            f"model.device_map = {study.model.device_map!r}: keys and values of a prefix are on one device, in every layer; use another "
            "recipe.kind and leave out the method prefix, or use none"
        )
    if kind not in ADAPTER_KINDS or ADAPTER_KINDS[kind].is_additive:
        return
    summable = " or ".join(name for name, other in ADAPTER_KINDS.items() if other.is_additive)
    for name in (name for name in study.methods if name in METHODS and METHODS[name].adds_adapters):
        yield f"recipe.kind = {kind!r}: {name} adds adapters up, as is possible with {summable}; leave the method out, or use one of these"
    if study.clustering.algorithm in PREREQUISITES:
        yield (
            f"recipe.kind = {kind!r}: clustering.algorithm = {study.clustering.algorithm!r} reads the factors of adapters, which only "
            f"{summable} have; use another algorithm or one of these"
        )


def _width_problems(study: Study) -> Iterator[str]:
    """Yield why `unified_wide` cannot have the clusters' parameters, where it cannot."""
    if "unified_wide" not in study.methods:
        return
    sizes, recipe = study.clustering.sizes, study.recipe
    n_clusters = study.clustering.k or len(sizes or ())
    if recipe.kind == "ia3":
        yield "recipe.kind = 'ia3': its adapters have no rank that unified_wide could widen; leave the method out, or use another kind"
    elif recipe.rank * n_clusters > MOST_RANK:
        yield (
            f"recipe.rank = {recipe.rank}: unified_wide would have rank {recipe.rank * n_clusters} with {n_clusters} clusters, more than "
            f"{MOST_RANK}; lower rank or clustering.k, or leave the method out"
        )


def _people_problems(study: Study) -> Iterator[str]:
    from clusterlora.data import SOURCES

    data, planted, clustering = study.data, study.data.synthetic, study.clustering
    n_personas: int | None = None
    if data.source == "synthetic":
        n_personas = min(sum(planted.cluster_sizes), data.personas or sum(planted.cluster_sizes))
        share = planted.cluster_share + planted.persona_share + planted.noise_share
        if share > 1 + 1e-9:
            yield f"data.synthetic: cluster_share + persona_share + noise_share = {share:g}; lower them to at most 1 together"
        if data.path is not None:
            yield f"data.path = {data.path!r}: synthetic people need no file; set data.source to table or edgewise, or leave path out"
        n_needed = data.train + data.val + data.test
        if planted.dialogues < n_needed:
            yield (
                f"data.synthetic.dialogues = {planted.dialogues}: fewer than train + val + test = {n_needed}; "
                f"raise it to {n_needed} or lower the splits"
            )
    elif data.path is None and data.source in SOURCES:
        yield f"data.path: missing; the {data.source} source needs a file or folder (--data PATH)"
    if clustering.sizes is not None and clustering.k is not None and len(clustering.sizes) != clustering.k:
        yield f"clustering.sizes = {list(clustering.sizes)}: {len(clustering.sizes)} sizes for k = {clustering.k}; make them agree"
    persona_limit = data.personas or n_personas
    if n_personas is not None and clustering.sizes is not None and sum(clustering.sizes) != n_personas:
        yield (
            f"clustering.sizes = {list(clustering.sizes)}: they sum to {sum(clustering.sizes)}, but there are {n_personas} personas; "
            "change the sizes or leave them out"
        )
    if persona_limit is not None and clustering.k is not None and clustering.k > persona_limit:
        yield f"clustering.k = {clustering.k}: more clusters than the {persona_limit} personas; lower it"


def _gate_problems(study: Study) -> Iterator[str]:
    if study.gate.above_random_group and "random_cluster" not in study.methods:
        yield "gate.above_random_group = true: methods do not include random_cluster, whose group it asks; add it or leave this out"
    names = [rung.name for rung in study.gate.ladder]
    for index, rung in enumerate(study.gate.ladder):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", rung.name):
            yield f"gate.ladder.{index}.name = {rung.name!r}: use lower-case letters, digits and dashes"
        if re.fullmatch(_RUNGS_OF_EVERY_STUDY, rung.name):
            yield f"gate.ladder.{index}.name = {rung.name!r}: own, asked-N and trial-N are every study's; choose another name"
        if names.count(rung.name) > 1 and names.index(rung.name) == index:
            yield f"gate.ladder: two rungs are called {rung.name!r}; give each its own name"
        if rung.learning_rate is None and rung.epochs is None and rung.init is None:
            yield f"gate.ladder.{index}: rung {rung.name!r} changes nothing; set learning_rate, epochs or init"


def _retrieval_problems(study: Study) -> Iterator[str]:
    retrieval = study.retrieval
    choices: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("counts", retrieval.counts),
        ("rankings", retrieval.rankings),
        ("sources", retrieval.sources),
    )
    for name, values in choices:
        if not values:
            yield f"retrieval.{name} = []: nothing to choose from; give at least one value"
        for value in {value for value in values if values.count(value) > 1}:
            yield f"retrieval.{name}: {value!r} is listed twice; list it once"
    if retrieval.counts and not any(retrieval.counts):
        yield f"retrieval.counts = {list(retrieval.counts)}: no exchange is ever shown; add a count, for example 3"


def _tuning_problems(study: Study) -> Iterator[str]:
    from clusterlora.methods import METHODS

    if study.tune and not any(METHODS[name].recipes for name in study.methods if name in METHODS):
        yield f"tune = {study.tune}: no method of this study trains adapters; leave it out, or add one such as unified"


def merging_problems(merging: MergeSettings) -> Iterator[str]:
    """Yield what a merge has no use for."""
    if merging.kind == "average" and merging.density is not None:
        yield f"merging.density = {merging.density:g}: an average keeps every change; leave it out, or set merging.kind to ties or dare"


def _run_problems(study: Study) -> Iterator[str]:
    if study.minutes is not None and study.data.canaries is not None:
        yield (
            f"minutes = {study.minutes:g}: may leave out what data.canaries = {study.data.canaries} plants; "
            "add --set minutes=none, or plant nothing"
        )
    micro_batch = study.runtime.micro_batch
    if micro_batch is not None and micro_batch > study.recipe.batch_size:
        yield (
            f"runtime.micro_batch = {micro_batch}: larger than recipe.batch_size = {study.recipe.batch_size}; "
            "lower it, or leave it out to use the whole batch"
        )
    longest, longest_answer = study.model.max_length, study.evaluation.max_new_tokens
    if study.data.source == "synthetic":
        longest, longest_answer = longest or Lengths().max_length, longest_answer or Lengths().max_new_tokens
    if longest is not None and longest_answer is not None and longest_answer >= longest:
        yield (
            f"evaluation.max_new_tokens = {longest_answer}: leaves no room for a prompt in model.max_length = {longest}; "
            "lower the one or raise the other"
        )
    if not study.recipe.target_modules:
        yield "recipe.target_modules = []: an adapter with nothing to change; name linear layers such as q_proj and v_proj"


def problems_of_new(study: Study) -> Iterator[str]:
    """Yield what is refused of a study that is not recorded yet; one of an earlier version, and its copies, go on as they are."""
    is_copy = study.refresh.of is not None or study.data.permute_seed is not None or study.data.canaries is not None
    if not is_copy and (retrieving := _retrieving(study)) and "prompt_tokens" not in study.evaluation.metrics:
        yield f"evaluation.metrics: {' and '.join(retrieving)} show exchanges in prompts, and prompt_tokens, their cost, is missing; add it"


def _retrieving(study: Study) -> list[str]:
    """Return the methods that show train exchanges in their prompts."""
    from clusterlora.methods import METHODS

    return [name for name in study.methods if name in METHODS and METHODS[name].retrieves]


def nll_settings(study: Study) -> str:
    """Return the --set options with which a study measures the loss alone: nothing is generated, and no gate asks for a percentage."""
    evaluation, gate = study.evaluation, study.gate
    cost = ',"prompt_tokens"' if _retrieving(study) else ""
    given = ["evaluation.headline=nll", f"'evaluation.metrics=[\"nll\"{cost}]'"]
    given += ["evaluation.second_headline=none"] if evaluation.second_headline is not None else []
    given += ["evaluation.selection_metric=nll"] if evaluation.selection_metric != "nll" else []
    given += [f"gate.{name}=none" for name in ("mean_similarity", "worst_persona") if getattr(gate, name) is not None]
    given += ["gate.second_headline=false"] if gate.second_headline else []
    return " ".join(f"--set {one}" for one in given)
