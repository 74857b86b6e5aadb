"""Base models: the frozen causal language model that every adapter is added to, by name, hub id or folder."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from clusterlora.catalog import Catalog
from clusterlora.chat.template import ChatTemplate
from clusterlora.errors import BadSettings, ModelUnavailable
from clusterlora.models.checks import known_positions, refuse_tokens_without_embedding, refuse_unspreadable
from clusterlora.models.device import usual_device
from clusterlora.models.footprint import activation_bytes_per_token
from clusterlora.models.hub import hub_snapshot
from clusterlora.models.loading import empty_causal_lm, load_causal_lm, load_tokenizer
from clusterlora.models.memory import total_memory_bytes
from clusterlora.models.quantised import compute_dequantised, quantisable, refuse_unquantisable
from clusterlora.models.revision import revision_of
from clusterlora.models.smollm2 import fetch_smollm2
from clusterlora.models.targets import BlockWeights, block_weights
from clusterlora.models.weights import combined_sha256, weight_files
from clusterlora.settings import DeviceMap, Dtype, Quantisation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HOMELM_FOLDER = Path(__file__).parent / "homelm"


def shipped_homelm() -> Path:
    """Return the folder of homelm inside this package."""
    return HOMELM_FOLDER


BASE_MODELS: Catalog[Callable[[], Path]] = Catalog(
    "base model",
    {
        "homelm": shipped_homelm,
        "smollm2-135m": fetch_smollm2,
    },
)
"""Base models that need no hub, by name: functions that return the folder of weights, and create it if it is missing."""


_BFLOAT16_WIDTH = 512
"""Width from which a base computes faster in bfloat16."""

_MIN_TRAINABLE = 256
"""Tokens that every machine is trusted with; where even they are too many, memory runs out with a message that says what to change."""

_LICENCES = {"smollm2-135m": "apache-2.0"}
"""Licences of models without a model card."""


@dataclass(frozen=True, slots=True)
class UsableBase:
    """A base model whose files fit together, without its weights.

    `n_positions` are the positions it knows and `n_trainable` the tokens of the longest sequence that a quarter of this machine's memory
    can train it on; both are None where its files do not tell. `weights` are what adapters can be on, and
    `quantisable_share` of those that bitsandbytes can hold in fewer bits.
    """

    name: str
    tokenizer: "PreTrainedTokenizerBase"
    weights: BlockWeights
    n_positions: int | None = None
    n_trainable: int | None = None
    quantisable_share: float = 0.0


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen base model in memory. `revision` identifies it: weights, configuration, tokenizer and chat template."""

    name: str
    revision: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def pad_id(self) -> int:
        """The padding id, an end id where the tokenizer has none: padding is always masked."""
        pad_id = self.tokenizer.pad_token_id
        return min(self.end_ids) if pad_id is None else int(pad_id)

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer: the template's end of turn, the tokenizer's end of text, and those of the generation settings."""
        eos = self.model.generation_config.eos_token_id if self.model.generation_config else None
        generation_ends = eos if isinstance(eos, list) else [eos]
        ends: Any = self.tokenizer.convert_tokens_to_ids(sorted(ChatTemplate(self.tokenizer).end_tokens))
        return frozenset(int(i) for i in (*ends, self.tokenizer.eos_token_id, *generation_ends) if i is not None)


def base_folder(name: str) -> Path:
    """Return the folder on this machine that holds a base model. Raises ModelUnavailable, as `load_base`."""
    return _find(name)[0]


def base_licence(name: str) -> str:
    """Return the licence in a base model's card, else a hint where to look for it."""
    card = base_folder(name) / "README.md"
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
    licence = next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), None)
    return licence or _LICENCES.get(name) or "not stated in its folder; see the page of the base model"


def base_revision(name: str, quantisation: Quantisation = "none") -> str:
    """Return the revision of a base model (of its weights, configuration, tokenizer and chat template), without loading it.

    Raises:
        ModelUnavailable: as `load_base`.
    """
    return _quantised_revision(_find(name)[1], quantisation)


def _quantised_revision(revision: str, quantisation: Quantisation) -> str:
    return revision if quantisation == "none" else f"{revision}-{quantisation}"


def load_base(
    name: str,
    *,
    dtype: Dtype | Literal["auto"] = "float32",
    device: str = "cpu",
    quantisation: Quantisation = "none",
    device_map: DeviceMap = "none",
) -> BaseModel:
    """Return a base model in eval mode, its parameters frozen, and its tokenizer with a pad token.

    The pad token may be the end-of-sequence token: callers mask padding by attention mask, never by id, and choose the padding side.

    Args:
        name: a key of BASE_MODELS, a local folder, or a hub id.
        dtype: "auto" is the result of `faster_dtype`.
        quantisation: "nf4" or "int8" holds the linear layers in fewer bits; `models.quantised` says what they compute.
        device_map: "auto" spreads the layers over all GPUs, in place of `device`; without several it is all on one device.

    Raises:
        ModelUnavailable: it cannot be found, fetched, loaded, quantised or spread, holds only pickled weights, or has no chat template.
        BadSettings: unknown dtype or quantisation.
    """
    if dtype == "auto":
        dtype = faster_dtype(name)
    if dtype not in get_args(Dtype):
        raise BadSettings(f"dtype {dtype!r} is not supported; use {' or '.join(get_args(Dtype))}")
    if quantisation not in get_args(Quantisation):
        raise BadSettings(f"quantisation {quantisation!r} is not supported; use {' or '.join(get_args(Quantisation))}")
    if device_map not in get_args(DeviceMap):
        raise BadSettings(f"device_map {device_map!r} is not supported; use {' or '.join(get_args(DeviceMap))}")
    folder, revision = _find(name)
    refuse_unquantisable(folder, quantisation)
    refuse_unspreadable(folder, device_map)
    if device_map == "auto":
        model, tokenizer = load_causal_lm(folder, dtype=dtype, device="auto", quantisation=quantisation)
    elif quantisation == "none":
        model, tokenizer = load_causal_lm(folder, dtype=dtype)
        model.to(device)  # pyrefly: ignore[bad-argument-type]
    else:
        model, tokenizer = load_causal_lm(folder, dtype=dtype, device=device, quantisation=quantisation)
    compute_dequantised(model)
    end = ChatTemplate(tokenizer).end_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or end
    return BaseModel(name, _quantised_revision(revision, quantisation), model.eval().requires_grad_(False), tokenizer)


def base_to_describe(name: str) -> BaseModel:
    """Return a base model to ask for its tokenizer and ids, not for answers: its weights are not read, except from GGUF.

    Raises:
        ModelUnavailable: as `load_base`.
    """
    folder, revision = _find(name)
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu" if weight_files(folder)[0].suffix == ".gguf" else "meta")
    return BaseModel(name, revision, model, tokenizer)


def base_to_measure(name: str) -> BaseModel:
    """Return a base model on the meta device, whatever its files: of its weights there are names and shapes.

    Raises:
        ModelUnavailable: as `load_base`.
    """
    folder, revision = _find(name)
    if weight_files(folder)[0].suffix == ".gguf":
        return BaseModel(name, revision, empty_causal_lm(folder), load_tokenizer(folder))
    return BaseModel(name, revision, *load_causal_lm(folder, dtype="float32", device="meta"))


def usable_base(name: str, quantisation: Quantisation = "none", device_map: DeviceMap = "none") -> UsableBase:
    """Return a base model whose files fit together; of its weights only names and shapes are read.

    Raises:
        ModelUnavailable: as `load_base`.
    """
    folder = base_folder(name)
    refuse_unquantisable(folder, quantisation)
    refuse_unspreadable(folder, device_map)
    if weight_files(folder)[0].suffix == ".gguf":
        model, tokenizer = empty_causal_lm(folder), load_tokenizer(folder)
        embedding: Any = model.get_input_embeddings()
        refuse_tokens_without_embedding(tokenizer, int(embedding.weight.shape[0]))
    else:
        model, tokenizer = load_causal_lm(folder, dtype="float32", device="meta")
    weights = block_weights(model)
    n_quantisable = sum(module.weight.numel() for module in quantisable(model))  # pyrefly: ignore[not-callable]
    share = n_quantisable / sum(weights.n_weights.values())
    if quantisation != "none" and not share:
        raise ModelUnavailable(
            f"model.quantisation = {quantisation}: base model {name} has no linear layers that bitsandbytes quantises; use none"
        )
    return UsableBase(name, tokenizer, weights, known_positions(model.config), _trainable_tokens(model.config), share)


def _trainable_tokens(config: Any) -> int | None:
    """Return how many tokens a quarter of this machine's memory can train in float32, with three rows of logits each."""
    activations = activation_bytes_per_token(config, 4)
    if activations is None:
        return None
    return max(_MIN_TRAINABLE, total_memory_bytes() // 4 // (activations + 4 * 3 * config.get_text_config().vocab_size))


def faster_dtype(name: str) -> Dtype:
    """Return the faster dtype for a base model on this machine: bfloat16 if the processor supports it and the base is wide.

    Narrow bases spend their time outside matrix products: on a CPU with bfloat16, homelm (192 wide) trains 0.8 times as fast in it, and
    SmolLM2 (576 wide) 1.7 times (docs/benchmarks.md).

    Raises:
        ModelUnavailable: as `load_base`.
    """
    return "bfloat16" if _is_wide(name) and multiplies_bfloat16(usual_device()) else "float32"


def slow_processor(name: str) -> str | None:
    """Return why `faster_dtype` takes float32 where GPUs elsewhere may gain from bfloat16, with the fix; None where that is not so.

    Raises:
        ModelUnavailable: as `load_base`.
    """
    if usual_device() != "cpu" or multiplies_bfloat16("cpu") or not _is_wide(name):
        return None
    return (
        "model.dtype = auto took float32: this machine has no GPU, and its processor no bfloat16 instructions. "
        "If workers have GPUs, they are faster with --set model.dtype=bfloat16, under another --name"
    )


def _is_wide(name: str) -> bool:
    """Return whether a base model is so wide that it gains from bfloat16."""
    config = base_folder(name) / "config.json"
    width = json.loads(config.read_text(encoding="utf-8")).get("hidden_size", 0) if config.is_file() else 0
    return width >= _BFLOAT16_WIDTH


def multiplies_bfloat16(device_type: str) -> bool:
    """Return whether a device of this machine has bfloat16 instructions; without them it is emulated and slow."""
    import torch

    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags.read_text(encoding="utf-8")) is not None


def _find(name: str) -> tuple[Path, str]:
    """Return the folder behind a name and its revision."""
    if name in BASE_MODELS:
        folder = BASE_MODELS[name]()
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        # A repository's subfolders hold the same weights in other formats.
        folder = hub_snapshot(name, kind="base model", alternatives=tuple(BASE_MODELS), ignore=("*/*",))
        weight_files(folder)
        return folder, revision_of(folder, folder.name)
    return folder, revision_of(folder, combined_sha256(weight_files(folder)))
