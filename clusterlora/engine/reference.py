"""The reference engine: plain PEFT, one adapter after another. Slow and simple; the stacked engine is tested against it."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from clusterlora.engine import checkpoint
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob, TrainingResult, batches, initial_a, learning_rate, out_of_patience, pad_rows
from clusterlora.engine.linear_layers import is_transposed
from clusterlora.engine.memory import allocation_failures
from clusterlora.engine.peft_folder import lora_config
from clusterlora.engine.progress import Progress
from clusterlora.engine.sequences import TokenSequence
from clusterlora.engine.stacked import logits_only_at
from clusterlora.errors import TrainingDiverged
from clusterlora.recipe import Recipe

log = logging.getLogger(__name__)

_TRAINED = "default"
"""PEFT's name of the adapter that is saved without a subfolder."""


def train(base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: Progress) -> Iterator[TrainingResult]:
    """Train adapters one by one and yield each as soon as it is finished.

    A job resumes after its last finished epoch.

    Raises:
        OutOfMemory: an allocation failed; the checkpoints stay.
        TrainingDiverged: a loss is not finite.
    """
    for job in jobs:
        with allocation_failures(micro_batch=micro_batch, doing=f"training {job.name}"):
            yield _train_one(base, job, micro_batch=micro_batch, run_log=run_log)


def _train_one(base: BaseModel, job: TrainingJob, *, micro_batch: int, run_log: Progress) -> TrainingResult:
    started = time.monotonic()
    recipe = job.recipe
    model = _with_adapter(base, job)
    try:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        losses, val_losses, best = _restore(model, optimiser, job)
        for epoch in range(len(losses) // job.steps_per_epoch, recipe.epochs):
            if out_of_patience(recipe, val_losses):
                break
            # Dropout is reseeded per epoch, so a resumed epoch equals one that was not interrupted.
            with torch.random.fork_rng():
                torch.manual_seed(recipe.seed * 1_000_003 + epoch)
                for batch in batches(job, epoch):
                    rate = learning_rate(recipe, len(losses), job.total_steps)
                    losses.append(_step(model, optimiser, job, batch, rate=rate, micro_batch=micro_batch, pad_id=base.pad_id))
                    run_log.advance(1, loss=losses[-1])
            if recipe.patience:
                val_losses.append(_val_loss(model, job, micro_batch=micro_batch, pad_id=base.pad_id))
                if val_losses[-1] == min(val_losses):
                    best = {_layer_tensor_name(name): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            _save_checkpoint(model, optimiser, job, losses, val_losses, best)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and best:
                parameter.data.copy_(best[_layer_tensor_name(name)])
        folder = job.scratch / "adapter"
        model.save_pretrained(str(folder), selected_adapters=[_TRAINED])
    finally:
        model.unload()
    return TrainingResult(job, folder, tuple(losses), time.monotonic() - started, tuple(val_losses))


def _step(
    model: PeftModel,
    optimiser: torch.optim.Optimizer,
    job: TrainingJob,
    batch: Sequence[int],
    *,
    rate: float,
    micro_batch: int,
    pad_id: int,
) -> float:
    """Take one optimiser step on the mean loss per response token of the batch, accumulated over micro-batches; return that loss."""
    recipe = job.recipe
    rows = [job.sequences[i] for i in batch]
    n_tokens = sum(row.n_response_tokens for row in rows)
    total = 0.0
    for start in range(0, len(rows), micro_batch):
        loss = _nll(model, rows[start : start + micro_batch], pad_id=pad_id) / n_tokens
        loss.backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise TrainingDiverged(f"adapter {job.name} has loss {total} at learning_rate={recipe.learning_rate}; lower recipe.learning_rate")
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], recipe.max_grad_norm)
    optimiser.param_groups[0]["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return total


def _nll(model: PeftModel, rows: Sequence[TokenSequence], *, pad_id: int) -> Float[Tensor, ""]:
    """Return the summed negative log-likelihood of the rows' response tokens."""
    ids, predicts = (part.to(model.device) for part in pad_rows(rows, pad_id=pad_id))
    # Right padding under causal attention needs no mask: no real token attends to padding.
    with logits_only_at(model, predicts):
        logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, ids[:, 1:][predicts[:, :-1]], reduction="sum")


@torch.no_grad()
def _val_loss(model: PeftModel, job: TrainingJob, *, micro_batch: int, pad_id: int) -> float:
    """Return the mean loss per response token of the job's val dialogues, without dropout."""
    model.eval()
    total = sum(float(_nll(model, job.val[start : start + micro_batch], pad_id=pad_id)) for start in range(0, len(job.val), micro_batch))
    _train_adapter(model)
    return total / sum(row.n_response_tokens for row in job.val)


def _config(base: BaseModel, recipe: Recipe) -> LoraConfig:
    return lora_config(recipe, base=base.name, fan_in_fan_out=is_transposed(base.model, recipe.target_modules))


def _with_adapter(base: BaseModel, job: TrainingJob) -> PeftModel:
    """Return the base with the job's adapter, initialised, over its frozen adapter."""
    model: PeftModel = get_peft_model(base.model, _config(base, job.recipe))  # pyright: ignore[reportAssignmentType]
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            layer = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            parameter.data.copy_(initial_a(layer, rank=parameter.shape[0], d_in=parameter.shape[1], seed=job.recipe.seed))
    if job.init_from is not None:
        set_peft_model_state_dict(model, load_file(job.init_from / "adapter_model.safetensors"))
    if job.frozen_adapter is not None:
        model.load_adapter(str(job.frozen_adapter), "frozen", is_trainable=False)
        model.base_model.set_adapter([_TRAINED, "frozen"])  # pyright: ignore[reportCallIssue]  (PEFT forwards it to its tuner)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{_TRAINED}." in name)
    _train_adapter(model)
    return model


def _train_adapter(model: PeftModel) -> None:
    """Put the adapter's dropout into training mode; the frozen base stays in evaluation mode, whatever dropout it was trained with."""
    model.eval()
    for name, module in model.named_modules():
        if ".lora_dropout" in name:
            module.train()


def _save_checkpoint(
    model: PeftModel,
    optimiser: torch.optim.Optimizer,
    job: TrainingJob,
    losses: Sequence[float],
    val_losses: Sequence[float],
    best: Mapping[str, Tensor],
) -> None:
    trained = {_layer_tensor_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    moments = [{name: optimiser.state[p][moment] for name, p in trained.items()} for moment in ("exp_avg", "exp_avg_sq")]
    weights = {name: parameter.data for name, parameter in trained.items()}
    checkpoint.write(job, checkpoint.Checkpoint(weights, moments[0], moments[1], tuple(losses), tuple(val_losses), best))


def _restore(model: PeftModel, optimiser: torch.optim.Optimizer, job: TrainingJob) -> tuple[list[float], list[float], Mapping[str, Tensor]]:
    """Load the last checkpoint if there is one; return its losses, its val losses, and the weights with the lowest val loss."""
    saved = checkpoint.read(job)
    if saved is None:
        return [], [], {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(saved.weights[_layer_tensor_name(name)])
            optimiser.state[parameter] = {
                "step": torch.tensor(float(len(saved.losses))),
                "exp_avg": saved.first_moments[_layer_tensor_name(name)].to(parameter.device),
                "exp_avg_sq": saved.second_moments[_layer_tensor_name(name)].to(parameter.device),
            }
    log.info("%s resumes after step %d of %d", job.name, len(saved.losses), job.total_steps)
    return list(saved.losses), list(saved.val_losses), saved.best


def _layer_tensor_name(name: str) -> str:
    """Return `<layer>.lora_A.weight` for PEFT's `base_model.model.<layer>.lora_A.default.weight`."""
    return name.removeprefix("base_model.model.").replace(f".{_TRAINED}.", ".")
