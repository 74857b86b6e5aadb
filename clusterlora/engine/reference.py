"""The reference engine: plain PEFT, one adapter after another. Slow and simple; the stacked engine is tested against it."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine import checkpoint
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob, TrainingResult, batches, diverged, learning_rate, out_of_patience
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.engine.memory import BatchSize
from clusterlora.engine.placement import refuse_spread_head
from clusterlora.engine.progress import Progress, StepReport
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.stacked import logits_only_at

log = logging.getLogger(__name__)

_TRAINED = "default"
"""PEFT's name of the adapter that is saved without a subfolder."""


def train(
    base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: Progress, halve_micro_batch: bool = False
) -> Iterator[TrainingResult]:
    """Train adapters one by one and yield each as soon as it is finished.

    A job resumes after the epoch of its last checkpoint, or in the epoch in which another engine's checkpoint left it.

    Args:
        halve_micro_batch: when an allocation fails, go on from the checkpoint with half the micro-batch.

    Raises:
        OutOfMemory: an allocation failed, and the micro-batch is 1 or is not to be halved; the checkpoints stay.
        TrainingDiverged: a loss is not finite. Raised after all other adapters have finished.
    """
    queue, failed = deque(jobs), list[TrainingJob]()
    report = StepReport(run_log)
    size = BatchSize(micro_batch, halve=halve_micro_batch)
    while queue:
        with size.attempt(f"training {queue[0].name}"):
            result = _train_one(base, queue[0], micro_batch=size.value, report=report)
            job = queue.popleft()
            if result is None:
                failed.append(job)
            else:
                report.finished(result)
                yield result
    if failed:
        raise diverged(failed)


def _train_one(base: BaseModel, job: TrainingJob, *, micro_batch: int, report: StepReport) -> TrainingResult | None:
    """Return the finished adapter, or None as soon as a loss is not finite."""
    started = saved = time.monotonic()
    recipe = job.recipe
    model = _with_adapter(base, job)
    try:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        losses, val_losses, best = _restore(model, optimiser, job)
        report.began(job, len(losses))
        for epoch in range(len(losses) // job.steps_per_epoch, recipe.epochs):
            if out_of_patience(recipe, val_losses):
                break
            # Dropout is reseeded per epoch, so a resumed epoch equals one that was not interrupted.
            with torch.random.fork_rng():
                torch.manual_seed(recipe.seed * 1_000_003 + epoch)
                for batch in batches(job, epoch)[len(losses) - epoch * job.steps_per_epoch :]:
                    rate = learning_rate(recipe, len(losses), job.total_steps)
                    losses.append(_step(model, optimiser, job, batch, rate=rate, micro_batch=micro_batch, pad_id=base.pad_id))
                    if not math.isfinite(losses[-1]):
                        return None
                    report.stepped(job, [job.sequences[i] for i in batch], losses[-1])
            if recipe.patience:
                val_losses.append(_val_loss(model, job, micro_batch=micro_batch, pad_id=base.pad_id))
                if not math.isfinite(val_losses[-1]):
                    return None
                if val_losses[-1] == min(val_losses):
                    best = {_layer_tensor_name(name): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            is_finished = len(losses) == job.total_steps or out_of_patience(recipe, val_losses)
            if not is_finished and checkpoint.is_due(saved):
                _save_checkpoint(model, optimiser, job, losses, val_losses, best)
                saved = time.monotonic()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and best:
                parameter.data.copy_(best[_layer_tensor_name(name)])
        if not all(bool(parameter.isfinite().all()) for parameter in parameters):
            return None
        folder = job.scratch / "adapter"
        # The base's embeddings are frozen: an adapter on them needs no copy.
        model.save_pretrained(str(folder), selected_adapters=[_TRAINED], save_embedding_layers=False)
    finally:
        model.unload()
        base.model.eval()
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
    """Take one optimiser step on the mean loss per response token of the batch, accumulated over micro-batches; return that loss.

    There is no step where the loss is not finite.
    """
    recipe = job.recipe
    rows = [job.sequences[i] for i in batch]
    n_tokens = sum(row.n_response_tokens for row in rows)
    total = 0.0
    for start in range(0, len(rows), micro_batch):
        loss = _nll(model, rows[start : start + micro_batch], pad_id=pad_id) / n_tokens
        loss.backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        return total
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], recipe.max_grad_norm)
    optimiser.param_groups[0]["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return total


def _nll(model: PeftModel, rows: Sequence[TokenSequence], *, pad_id: int) -> Float[Tensor, ""]:
    """Return the summed negative log-likelihood of the rows' response tokens."""
    ragged = RaggedRows.of(rows)
    ids, predicts = (part.to(model.device) for part in ragged.padded(pad_id=pad_id))
    # Right padding under causal attention needs no mask: no real token attends to padding.
    with logits_only_at(model, predicts):
        logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, ragged.targets.to(model.device), reduction="sum")


@torch.no_grad()
def _val_loss(model: PeftModel, job: TrainingJob, *, micro_batch: int, pad_id: int) -> float:
    """Return the mean loss per response token of the job's val dialogues, without dropout."""
    model.eval()
    total = sum(float(_nll(model, job.val[start : start + micro_batch], pad_id=pad_id)) for start in range(0, len(job.val), micro_batch))
    _set_training(model)
    return total / sum(row.n_response_tokens for row in job.val)


def _with_adapter(base: BaseModel, job: TrainingJob) -> PeftModel:
    """Return the base with the job's adapter, initialised, over its frozen adapter."""
    kind = ADAPTER_KINDS[job.recipe.kind]
    refuse_spread_head(base.model, job.recipe)
    with torch.random.fork_rng():
        torch.manual_seed(job.recipe.seed)
        model: PeftModel = get_peft_model(base.model, kind.peft_config(base, job.recipe))
    kind.initialise(model, job.recipe)
    if job.init_from is not None:
        set_peft_model_state_dict(model, load_file(job.init_from / "adapter_model.safetensors"))
    if job.frozen_adapter is not None:
        model.load_adapter(str(job.frozen_adapter), "frozen", is_trainable=False)
        model.base_model.set_adapter([_TRAINED, "frozen"])  # pyrefly: ignore[not-callable]  (PEFT forwards it to its tuner)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{_TRAINED}." in name)
    _set_training(model)
    return model


def _set_training(model: PeftModel) -> None:
    """Put the adapter into training mode, and leave the frozen base in eval mode: no dropout of its own."""
    model.eval()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
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
