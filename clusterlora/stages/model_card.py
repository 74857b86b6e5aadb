"""What the registry says of a model: made of what, scored how, under which licence, and how to load it."""

import hashlib
from collections.abc import Mapping
from typing import Any

from clusterlora.comparison.result import Comparison
from clusterlora.evaluation.markdown import cell
from clusterlora.evaluation.metrics import METRICS
from clusterlora.models.base import BASE_MODELS, base_licence
from clusterlora.ports import About
from clusterlora.settings import Study

SCORES_FACT = "scores"
"""The study's fact that holds every method's score, difference and interval on the headline metric."""


def scores_fact(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers of a comparison that cards show."""
    return {
        result.method: {
            "mean": result.means[comparison.headline],
            "mean_low": result.mean_low,
            "mean_high": result.mean_high,
            "difference": result.vs_reference.mean if result.vs_reference else None,
            "ci_low": result.vs_reference.ci_low if result.vs_reference else None,
            "ci_high": result.vs_reference.ci_high if result.vs_reference else None,
            "personas": comparison.n_personas,
            "items": comparison.n_items,
        }
        for result in comparison.methods
    }


def about(study: Study, facts: Mapping[str, Any], *, model: str, method: str, n_personas: int, weights_sha256: Mapping[str, str]) -> About:
    """Return card and tags of a model that answers as a method does.

    Args:
        model: its name in the registry.
        n_personas: how many people its adapters learned from.
        weights_sha256: the digests of its adapters' weights, by content key.
    """
    best = facts.get("champion")
    sentence = str(facts.get("conclusion", "not compared"))
    outcome = "passed" if method == best else "failed"
    says = sentence if best in (None, method) else f"the comparison found {best} best: {sentence}"
    digest, recipe = str(facts.get("data_digest")), study.recipe
    tags = {"comparison": outcome, "comparison_says": says, "data_digest": digest, "training_personas": str(n_personas)}
    if weights_sha256:
        tags["weights_sha256"] = combined_sha256(weights_sha256)
    lines = [
        f"# {model}",
        "",
        f"Answers as method **{method}** of study **{study.name}**: {cell(says)}",
        "",
        f"- **Base**: `{study.model.base}`, revision `{str(facts.get('base_revision'))[:16]}`, licence {base_licence(study.model.base)}",
        f"- **Data**: `{digest}`, {n_personas} personas to learn from, {study.data.source} source",
        *_weights(weights_sha256),
        f"- **Recipe**: rank {recipe.rank}, alpha {recipe.alpha:g}, {recipe.epochs} epochs, batch {recipe.batch_size}",
        f"- **Score**: {_score(study, facts, method)}",
        "",
        "Served with its routing and prompts: "
        f"`mlflow models serve -m models:/{model}/{{version}} --env-manager local`. Adapters alone, after "
        f"`clusterlora registry export {model}/{{version}} --format peft --out exported`:",
        "",
        *_loading(study, weights_sha256),
    ]
    return About("\n".join(lines) + "\n", tags)


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


def _score(study: Study, facts: Mapping[str, Any], method: str) -> str:
    found = facts.get(SCORES_FACT, {}).get(method)
    if found is None:
        return "not compared"
    metric = METRICS[study.evaluation.headline]
    unit = "%" if metric.percent else ""

    def formatted(*names: str, signed: bool = False) -> list[str]:
        return [metric.format(found[name], signed=signed) for name in names]

    mean, low, high = formatted("mean", "mean_low", "mean_high")
    text = f"{metric.label} {mean}{unit} [{low}, {high}]"
    if found["difference"] is not None:
        difference, low, high = formatted("difference", "ci_low", "ci_high", signed=True)
        text += f", {difference} against unified [{low}, {high}]"
    return f"{text}, 95% intervals, {found['items']} items of {found['personas']} personas"


def _loading(study: Study, adapters: Mapping[str, str]) -> list[str]:
    """Return how PEFT and vLLM load an adapter, three lines each."""
    if not adapters:
        return ["It has no adapter: the base model answers."]
    base = f'"$(clusterlora models path {study.model.base})"' if study.model.base in BASE_MODELS else f'"{study.model.base}"'
    folder = "exported/adapters/NAME"
    return [
        "```python",
        f"# PEFT; BASE = {base}",
        "from peft import PeftModel; from transformers import AutoModelForCausalLM",
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), "{folder}")',
        "",
        "# vLLM",
        "from vllm import LLM; from vllm.lora.request import LoRARequest",
        f'LLM(BASE, enable_lora=True, max_lora_rank=RANK).chat(messages, lora_request=LoRARequest("NAME", 1, "{folder}"))',
        "```",
    ]
