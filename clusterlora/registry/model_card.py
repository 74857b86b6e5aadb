"""What the registry says of a model: made of what, scored how, under which licence, and how to load it."""

import hashlib
from collections.abc import Iterable, Mapping

from clusterlora.errors import counted
from clusterlora.evaluation.markdown import cell
from clusterlora.evaluation.metrics import METRICS
from clusterlora.metadata import ComparisonSummary, Provenance
from clusterlora.models.base import base_licence
from clusterlora.ports.model_registry import About
from clusterlora.recipe import Recipe
from clusterlora.serving.elsewhere import BASE_FOLDER, PEFT_LINES, answer_settings
from clusterlora.settings import PreparedStudy


def about(
    study: PreparedStudy,
    provenance: Provenance,
    summary: ComparisonSummary | None,
    *,
    model: str,
    method: str,
    n_personas: int,
    weights_sha256: Mapping[str, str],
    recipes: Iterable[Recipe],
) -> About:
    """Return card and tags of a model that answers as a method does.

    Args:
        summary: None when the study's methods were not compared.
        model: its name in the registry.
        n_personas: how many people its adapters learned from.
        weights_sha256: the digests of its adapters' weights, by content key.
        recipes: what its adapters were trained by.
    """
    says = _verdict(summary, method)
    digest = provenance.data_digest
    tags = {
        "comparison": _result(summary, method),
        "comparison_says": says,
        "data_digest": digest,
        "training_personas": str(n_personas),
    }
    if study.refresh.champion:
        tags["goes_on_from"] = study.refresh.champion
    if weights_sha256:
        tags["weights_sha256"] = combined_sha256(weights_sha256)
    lines = [
        f"# {model}",
        "",
        f"Answers as method **{method}** of study **{study.name}**: {cell(says)}",
        "",
        f"- **Base**: `{study.model.base}`, revision `{provenance.base_revision[:16]}`, licence {base_licence(study.model.base)}"
        + ("" if study.model.quantisation == "none" else f", its linear layers in {study.model.quantisation} (bitsandbytes)"),
        *_lineage(study),
        f"- **Data**: `{digest}`, {counted(n_personas, 'persona')} to learn from, {study.data.source} source",
        *_weights(weights_sha256),
        f"- **Recipe**: {'; '.join(dict.fromkeys(map(_words, recipes))) or 'nothing was trained here'}",
        f"- **Score**: {_score(study, summary, method)}",
        *_answering(study, provenance, model),
    ]
    return About("\n".join(lines) + "\n", tags)


def _words(recipe: Recipe) -> str:
    size = (
        f"prefix of {recipe.rank} virtual tokens"
        if recipe.kind == "prefix"
        else f"{recipe.kind}, rank {recipe.rank}, alpha {recipe.alpha:g}"
    )
    return f"{size}, {recipe.epochs} epochs, batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}"


def _lineage(study: PreparedStudy) -> list[str]:
    refresh = study.refresh
    if refresh.champion is None:
        return []
    return [f"- **Lineage**: a refresh of study {refresh.root}; goes on from {refresh.champion_method} of study {refresh.champion}"]


def _result(summary: ComparisonSummary | None, method: str) -> str:
    """Return what the comparison says of a method in a word or two: the tag `comparison`, see `PROMOTABLE`."""
    if summary is None:
        return "not compared"
    if method != summary.champion:
        return "failed"
    if not summary.beats_reference:
        return "unbeaten"
    return "gate refused" if summary.gate_refused else "passed"


def _verdict(summary: ComparisonSummary | None, method: str) -> str:
    if summary is None:
        return "not compared"
    if method == summary.champion or summary.champion is None:
        return summary.sentence
    return f"the comparison found {summary.champion} best: {summary.sentence}"


def combined_sha256(weights_sha256: Mapping[str, str]) -> str:
    """Return the digest of one adapter's weights; of several, that of the list of theirs by key, as `sha256sum` would write it."""
    if len(weights_sha256) == 1:
        return next(iter(weights_sha256.values()))
    return hashlib.sha256("".join(f"{sha256}  {key}\n" for key, sha256 in sorted(weights_sha256.items())).encode()).hexdigest()


def _weights(weights_sha256: Mapping[str, str]) -> list[str]:
    if not weights_sha256:
        return []
    of = "" if len(weights_sha256) == 1 else f" of the digests of {len(weights_sha256)} adapters, which are in its routes.json"
    return [f"- **Weights**: SHA-256 `{combined_sha256(weights_sha256)}`{of}"]


def _score(study: PreparedStudy, summary: ComparisonSummary | None, method: str) -> str:
    if summary is None or (score := summary.score(method)) is None:
        return "not compared"
    metric = METRICS[study.evaluation.headline]
    unit = "%" if metric.percent else ""

    mean, low, high = (metric.format(value) for value in (score.mean, score.mean_low, score.mean_high))
    text = f"{metric.label} {mean}{unit} [{low}, {high}]"
    if score.difference is not None and score.ci_low is not None and score.ci_high is not None:
        difference, low, high = (metric.format(value, signed=True) for value in (score.difference, score.ci_low, score.ci_high))
        text += f", {difference} against {summary.reference} [{low}, {high}]"
    return f"{text}, 95% intervals, {counted(score.n_items, 'item')} of {counted(score.n_personas, 'persona')}"


def _answering(study: PreparedStudy, provenance: Provenance, model: str) -> list[str]:
    """Return how answers are generated, and how PEFT and vLLM give the same ones without this package."""
    settings = answer_settings(study.model, max_new_tokens=study.evaluation.max_new_tokens, revision=provenance.base_revision)
    arguments = ", ".join(f"`{name}` = `{value}`" for name, value in settings.template_arguments.items())
    where = "copied into base/" if settings.base_model == BASE_FOLDER else f"commit `{settings.base_commit}`"
    return [
        f"- **Answers**: greedy, {settings.dtype}, at most {settings.max_new_tokens} tokens, ended by the token ids "
        f"{', '.join(map(str, settings.stop_token_ids))}; prompts of at most {settings.max_length} tokens with their answer",
        f"- **Prompt**: system text `{cell(settings.system_prompt)}`, with a line `Now: ....` for what both sides can see; arguments of "
        f"the chat template: {arguments or 'none'}, its date: {settings.template_date or 'today'}",
        "",
        f"Served with its routing: `mlflow models serve -m models:/{model}/{{version}} --env-manager local`. Without this package, in the "
        f"folder that `clusterlora registry export {model}/{{version}} --format peft --out exported` writes (base: "
        f"`{settings.base_model}`, {where}), `python load.py PERSONA TEXT` is:",
        "",
        "```python",
        *PEFT_LINES.splitlines(),
        "```",
        "",
        "With `--format vllm`, `sh serve.sh` in that folder serves base and adapters with the same settings.",
    ]
