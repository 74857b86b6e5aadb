"""What `clusterlora doctor --base-model` says: whether training on a base fits into this machine's memory."""

from pathlib import Path
from typing import TYPE_CHECKING

from clusterlora.settings import PreparedModel, Quantisation, Study

if TYPE_CHECKING:
    from clusterlora.models.base import BaseModel

_MEASURED = 1.4
"""How many times the estimate training has taken at the most (docs/models.md)."""
_FORMATS: tuple[tuple[Quantisation, str], ...] = (("none", "fits"), ("int8", "fits in 8 bit"), ("nf4", "fits in 4 bit"))


def study_to_measure(base: str | None, file: Path | None, settings: tuple[str, ...]) -> Study:
    """Return the study of these settings, on a base where one is named. Raises BadSettings."""
    from clusterlora.config import parse_setting, resolve

    named = {} if base is None else {"model.base": base}
    return resolve(None, file, named | dict(parse_setting(text) for text in settings))


def base_memory(study: Study) -> tuple[bool, str, str]:
    """Return whether training with a study's settings fits, the verdict with its numbers, and what to change where it does not.

    Raises:
        BadSettings: the base has none of the target modules.
        ModelUnavailable: no such base, or none that can be asked.
    """
    import torch

    from clusterlora.engine.memory import free_memory_by_device
    from clusterlora.engine.memory_estimate import MemoryEstimate, estimate_memory
    from clusterlora.engine.worker_threads import n_worker_threads
    from clusterlora.models.base import base_folder, base_to_measure, faster_dtype
    from clusterlora.models.checks import refuse_unspreadable
    from clusterlora.models.device import usual_device
    from clusterlora.models.quantised import refuse_unquantisable
    from clusterlora.models.targets import block_weights, resolved
    from clusterlora.models.weights import weight_files
    from clusterlora.settings import chosen_base

    name = chosen_base(study)
    refuse_unquantisable(base_folder(name), study.model.quantisation)
    refuse_unspreadable(base_folder(name), study.model.device_map)
    formats = _FORMATS[:1] if weight_files(base_folder(name))[0].suffix == ".gguf" else _FORMATS
    base, dtype = _askable(base_to_measure(name), study), faster_dtype(name) if study.model.dtype == "auto" else study.model.dtype
    recipe = resolved(study.recipe, block_weights(base.model))
    device = torch.device(usual_device())
    each, max_length = free_memory_by_device(), study.model.max_length or PreparedModel().max_length
    is_spread = study.model.device_map == "auto" and len(each) > 1
    together = f"{len(each)} GPUs together"
    one_worker = f"one worker that sees the {len(each)} GPUs (clusterlora down; clusterlora up --workers 1)"
    free, where = (sum(each), f"{together}, in {one_worker}") if is_spread else (each[0], device.type)

    def estimate(quantisation: Quantisation) -> MemoryEstimate:
        return estimate_memory(
            base,
            recipe,
            itemsize=4 if dtype == "float32" else 2,
            quantisation=quantisation,
            micro_batch=study.runtime.micro_batch or recipe.batch_size,
            max_length=max_length,
            device_type=device.type,
            n_workers=n_worker_threads(device),
            free=free,
        )

    by_format = {quantisation: estimate(quantisation) for quantisation, _ in formats}
    chosen = by_format[study.model.quantisation]

    def fits(one: MemoryEstimate, *, spread: bool) -> bool:
        # Of a base that is spread, every card has a share; a pass and the adapters that are trained are whole on one.
        on_each = not spread or _MEASURED * (one.base / len(each) + one.adapter + one.one_pass) <= min(each)
        return on_each and _MEASURED * one.total <= (sum(each) if spread else each[0])

    fitting = [said for quantisation, said in formats if fits(by_format[quantisation], spread=is_spread)]
    is_fitting = fits(chosen, spread=is_spread)
    verdict = dict(_FORMATS)[study.model.quantisation] if is_fitting else fitting[0] if fitting else "does not fit"
    numbers = (
        f"{name} in {dtype}: {verdict} into the {_gb(free)} free on {where}; with model.quantisation={study.model.quantisation} at "
        f"least {_gb(chosen.total)}, measured up to {_MEASURED} times that (base {_gb(chosen.base)}, an adapter of rank {recipe.rank} "
        f"{_gb(chosen.adapter)}, a pass of {chosen.n_tokens:,} tokens {_gb(chosen.one_pass)}), {chosen.n_adapters} adapters at once; "
        + ", ".join(f"{quantisation} {_gb(one.total)}" for quantisation, one in by_format.items())
    )
    if is_fitting:
        return True, numbers, ""
    smaller = next((quantisation for quantisation, said in _FORMATS if fitting and said == fitting[0]), None)
    fixes = [f"--set model.quantisation={smaller}"] if smaller else []
    if len(each) > 1 and not is_spread and len(formats) > 1 and fits(chosen, spread=True):
        fixes.append(f"--set model.device_map=auto for the {together} and {one_worker}")
    return False, numbers, " or ".join(fixes) or f"lower model.max_length={max_length}, or use a smaller base"


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


def _askable(base: "BaseModel", study: Study) -> "BaseModel":
    """Return the base, whose template and tokenizer can be used. Raises ModelUnavailable: what fits would be of no use."""
    from clusterlora.chat.encoder import PromptEncoder

    PromptEncoder(base.tokenizer, max_length=PreparedModel().max_length, arguments=study.model.template_arguments)
    return base
