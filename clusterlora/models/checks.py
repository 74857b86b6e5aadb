"""What a base model must be before anything is trained on it, told without reading its weights into memory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.errors import BadSettings, ModelUnavailable, printable
from clusterlora.json_text import RepeatedKey, parsed
from clusterlora.models.weights import loaded_files, weight_files
from clusterlora.settings import LEAST_ANSWER, LEAST_LENGTH, DeviceMap

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOGETHER = "bring config.json and the weights of one model together"
_READ_BY_CACHE = ("sliding_window", "attention_chunk_size", "layer_types")
_BIDIRECTIONAL: Mapping[str, tuple[Any, ...]] = {
    "use_bidirectional_attention": (True, "all"),
    "is_causal": (False,),
    "causal": (False,),
    "attn_type": ("bi",),
    "is_decoder": (False,),
}
"""Settings by which models attend to what follows: Gemma's, those of any class, XLM's, XLNet's, and those of BERT and its kin."""
_ATTENTION = frozenset({"full_attention", "sliding_attention", "attention"})
"""Kinds of layers that keep the keys and values of what came before, and nothing else."""
_OWN_POSITIONS = "create_position_ids_from_input_ids"
"""The method of embeddings in transformers that do not count positions from 0."""
_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})
_NUMBERS_OF_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_NAMED = 3
"""Weights named in a message; the rest are counted."""


def refuse_other_models(folder: Path) -> None:
    """Check that a folder holds a causal language model over text, and nothing that would be put on top of it.

    Raises:
        ModelUnavailable: an adapter beside the weights, another head, an encoder, or a model of images or sound as well.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelUnavailable(
            f"base model folder {folder} also holds an adapter (adapter_config.json), which would become part of the base; "
            "move the adapter's files elsewhere, or merge it (merge_and_unload) and save the whole as a new folder"
        )
    config = _config(folder)
    if stored := config.get("quantization_config"):
        method = stored.get("quant_method", "an unnamed method") if isinstance(stored, dict) else stored
        raise ModelUnavailable(
            f"base model {folder} is stored quantised ({method}, config.json); use its weights as they were before, and quantise them with "
            "model.quantisation=nf4 or int8"
        )
    if modality := next((name for name in ("vision_config", "audio_config") if config.get(name)), None):
        raise ModelUnavailable(
            f"base model {folder} reads more than text ({modality} in config.json); use the text-only model of its family, or save its "
            "language model alone"
        )
    if config.get("is_encoder_decoder"):
        raise ModelUnavailable(f"base model {folder} is an encoder-decoder (config.json); use a decoder that continues text")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architectures = config.get("architectures") or []
    architectures = [architectures] if isinstance(architectures, str) else architectures
    if architectures and not set(architectures) & set(_flat(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())):
        raise ModelUnavailable(
            f"base model {folder} is a {printable(str(architectures[0]))} (config.json), "
            + (
                "which is code of its own beside the weights, and never run here; use a model that transformers has the code of"
                if config.get("auto_map")
                else "which predicts no next token; use one whose architecture ends in ForCausalLM"
            )
        )


def refuse_what_cannot_be_computed(model: "PreTrainedModel", name: object) -> None:
    """Check that a model continues text as batches of prompts with keys and values need it. Raises ModelUnavailable with what it does."""
    refuse_recurrent(model, name)
    refuse_bidirectional(model, name)
    if any(hasattr(module, _OWN_POSITIONS) for module in model.modules()):
        raise ModelUnavailable(
            f"base model {name} is a {type(model).__name__}, which counts positions from its padding token's id, as encoders of RoBERTa's "
            "kind do; its answers cannot be computed here: use a decoder"
        )


def refuse_bidirectional(model: "PreTrainedModel", name: object) -> None:
    """Check that a model attends to what came before alone. Raises ModelUnavailable with the setting that says otherwise."""
    config = model.config.get_text_config()
    stated = {setting: declared(config, setting) for setting in _BIDIRECTIONAL}
    # transformers' masks read it whether or not the class has it; of others' settings only Gemma 4's "vision" leaves text causal.
    stated["is_causal"] = getattr(config, "is_causal", True)
    # Some causal classes have this setting as well and do not read it; the modules of those that do keep it.
    stated["is_decoder"] = all(getattr(module, "is_decoder", True) for module in model.modules())
    for setting, value in stated.items():
        if value is not None and value in _BIDIRECTIONAL[setting]:
            raise ModelUnavailable(
                f"base model {name} attends to what follows a token as well ({setting} = {json.dumps(value)} in its configuration), so it "
                "cannot continue text; use a causal language model, or correct the setting if it is one"
            )


def refuse_unspreadable(folder: Path, device_map: DeviceMap) -> None:
    """Check that a base folder can be held as asked. Raises ModelUnavailable."""
    if device_map != "none" and weight_files(folder)[0].suffix == ".gguf":
        raise ModelUnavailable(
            f"model.device_map = {device_map}: the base model in {folder} is a GGUF file, which is dequantised on one device; use its "
            "safetensors, or model.device_map=none"
        )


def read_settings(file: Path) -> dict[str, Any]:
    """Return what a model folder's JSON file says. Raises ModelUnavailable if it is not a JSON object."""
    try:
        settings: object = parsed(file.read_text(encoding="utf-8"))
    except RepeatedKey as error:
        raise ModelUnavailable(f"{file}: {printable(str(error))}") from error
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{file} is not JSON ({error}); get it again from where the model comes from") from error
    if not isinstance(settings, dict):
        raise ModelUnavailable(
            f"{file} holds a JSON {type(settings).__name__}, not an object; get it again from where the model comes from"
        )
    return settings


def refuse_bad_end_ids(model: "PreTrainedModel", folder: Path) -> None:
    """Check that what ends an answer, by a model's generation settings, are ids. Raises ModelUnavailable.

    Ids beyond the vocabulary are left alone: they end nothing, and small copies of large models have them.
    """
    ends: Any = model.generation_config.eos_token_id if model.generation_config else None
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and (type(end) is not int or end < 0):
            raise ModelUnavailable(
                f"generation_config.json of {folder} ends answers at eos_token_id = {printable(repr(end))}, which is no id of a token; "
                "get it again from where the model comes from"
            )


def refuse_unknown_token_without_id(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Check that what stands for an unknown token has an id: transformers looks it up without end. Raises ModelUnavailable."""
    try:
        _ = tokenizer.unk_token_id
    except RecursionError:
        raise ModelUnavailable(
            f"tokenizer_config.json of {folder} has unk_token = {printable(repr(tokenizer.unk_token))}, which is no token of its "
            "vocabulary; get it again from where the model comes from"
        ) from None


def refuse_recurrent(model: "PreTrainedModel", name: object) -> None:
    """Check that a model keeps keys and values of all tokens and no state that sums them up: answers share the work on common beginnings.

    Raises:
        ModelUnavailable: it is recurrent, or some of its layers are.
    """
    # Classes of mixed layers may have attention alone, as the dense Granite 4 do.
    layers = set(declared(model.config, "layer_types") or ())
    is_stateful = getattr(model, "_is_stateful", False) and not (layers and layers <= _ATTENTION)
    if is_stateful or "linear_attention" in (getattr(model.config, "layer_types", None) or ()):
        raise ModelUnavailable(
            f"base model {name} is a {type(model).__name__}, which keeps a recurrent state instead of keys and values; its answers cannot "
            "be computed here, so nothing is trained on it: use a base whose layers are attention"
        )


def refuse_other_head(model: "PreTrainedModel", folder: Path) -> None:
    """Check that a model whose configuration ties its output layer to its input embedding has no other output layer stored.

    transformers would compute with the stored one, and a program that goes by the configuration with the embedding.

    Raises:
        ModelUnavailable: it has.
    """
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False) or head is None or head.weight is embedding.weight:
        return
    if not head.weight.is_meta or not _stored_alike(model, (embedding.weight, head.weight), weight_files(folder)):
        raise ModelUnavailable(
            f"config.json of {folder} ties the output layer to the input embedding (tie_word_embeddings), and the weights hold another "
            "output layer; write tie_word_embeddings = false there to use it, or remove lm_head.weight to use the embedding"
        )


def refuse_other_weights(folder: Path, loading_info: Mapping[str, Any], *, remedy: str = _TOGETHER) -> None:
    """Check that a checkpoint had exactly the weights that its configuration asks for. Raises ModelUnavailable with their names."""
    for kind, what, fix in (
        ("missing_keys", "lacks", "they would be random numbers"),
        ("unexpected_keys", "also holds", "they would be left out"),
        ("mismatched_keys", "has of another shape", "they would be random numbers"),
    ):
        names = sorted(str(name[0]) if isinstance(name, tuple) else str(name) for name in loading_info.get(kind) or ())
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise ModelUnavailable(f"the checkpoint in {folder} {what} {', '.join(names[:_NAMED])}{more}, and {fix}; {remedy}")


def refuse_stored_otherwise(folder: Path) -> None:
    """Check that a checkpoint has weights for its layers, each stored once, as floating-point numbers where no quantisation is declared.

    transformers takes either of two stored values, and reads integers as if they were the weights that they stand for. It builds as many
    layers as it is told to before it looks for their weights: a million take minutes.

    Raises:
        ModelUnavailable: one is not.
    """
    from safetensors import safe_open

    config = _config(folder)
    is_quantised = "quantization_config" in config
    where: dict[str, str] = {}
    for file in loaded_files(folder):
        with safe_open(file, framework="pt") as opened:
            dtypes = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  (no mapping)
        for name, dtype in dtypes.items():
            if name in where:
                raise ModelUnavailable(f"{file} holds {name}, and so does {where[name]}; {_TOGETHER}")
            if name.endswith(".weight") and dtype in _INTEGERS and not is_quantised:
                raise ModelUnavailable(
                    f"{file} holds {name} as integers ({dtype}), and config.json has no quantization_config that says what they stand for; "
                    "get that, or the weights as floating-point numbers"
                )
        where |= dict.fromkeys(dtypes, file.name)
    for name in _NUMBERS_OF_LAYERS:
        if where and isinstance(n_layers := config.get(name), int) and n_layers > len(where):
            raise ModelUnavailable(f"the model in {folder} has {name} = {n_layers} (config.json) and {len(where)} weights; {_TOGETHER}")


def refuse_tokens_without_embedding(tokenizer: "PreTrainedTokenizerBase", n_embeddings: int) -> None:
    """Check that every token of a tokenizer has a row in the model's embedding. Raises ModelUnavailable."""
    number_by_token = tokenizer.get_vocab()
    n_tokens = max(number_by_token.values()) + 1
    if n_tokens <= n_embeddings:
        return
    added = {token for token, number in number_by_token.items() if number >= n_embeddings}
    what = f"the tokenizer of {tokenizer.name_or_path} has {n_tokens} tokens, the model's embedding {n_embeddings}"
    named = {key: str(token) for key, token in tokenizer.special_tokens_map.items() if str(token) in added}
    if len(added) == len(set(named.values())):
        # A token that only the settings speak of: a row for it would be random numbers.
        which = ", ".join(f"{key} = {printable(token)}" for key, token in named.items())
        raise ModelUnavailable(
            f"{what}: tokenizer_config.json has {which}, which the model does not know; name one of its own tokens there"
        )
    raise ModelUnavailable(f"{what}: tokens were added; call model.resize_token_embeddings(len(tokenizer)) and save the model again")


def declared(config: Any, name: str) -> Any:
    """Return a setting of a model's configuration, None where its class has no such setting and so reads none.

    Files that were converted from another family's keep that family's keys, and transformers keeps them as attributes.
    """
    return getattr(config, name, None) if name in _settings_of(type(config)) else None


@cache
def _settings_of(config: type) -> frozenset[str]:
    return frozenset(vars(config()))


def forget_undeclared_windows(config: Any) -> dict[str, Any]:
    """Remove from a configuration what its class does not read and transformers' cache would: windows of attention. Return what it was."""
    undeclared = {name: vars(config)[name] for name in _READ_BY_CACHE if name in vars(config) and name not in _settings_of(type(config))}
    for name in undeclared:
        delattr(config, name)
    return undeclared


def known_positions(config: Any) -> int | None:
    """Return the positions that a base model knows; None where its configuration names no limit.

    Of rotary positions with a short and a long set of factors (LongRoPE, Ding et al. 2024, arXiv 2402.13753) they are those of the short
    one: beyond, the longest sequence of a batch decides how all others are rotated.
    """
    text = config.get_text_config()
    rope: Any = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return rope.get("original_max_position_embeddings") or text.original_max_position_embeddings
    return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)


def refuse_too_long(name: str, n_positions: int | None, *, max_length: int, max_new_tokens: int) -> None:
    """Check that prompt and answer fit into the positions that a base model knows. Raises BadSettings."""
    if n_positions is None or max_length + max_new_tokens <= n_positions:
        return
    if n_positions < LEAST_LENGTH + LEAST_ANSWER:
        raise BadSettings(
            f"base model {name} knows {n_positions} positions, fewer than the {LEAST_LENGTH} of the shortest model.max_length and the "
            f"{LEAST_ANSWER} of the shortest answer; use another base model"
        )
    # The answer gives way where nothing else would leave a prompt.
    answer = min(max_new_tokens, n_positions - LEAST_LENGTH)
    shorter = "" if answer == max_new_tokens else f" and evaluation.max_new_tokens to {answer}"
    raise BadSettings(
        f"model.max_length = {max_length} and evaluation.max_new_tokens = {max_new_tokens} exceed the {n_positions} positions of "
        f"base model {name}; lower model.max_length to {n_positions - answer}{shorter} at most"
    )


def _config(folder: Path) -> Mapping[str, Any]:
    """Return the configuration of a model folder; empty for a GGUF file, which has its own."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    return read_settings(file)


def _stored_alike(model: "PreTrainedModel", weights: Sequence["Tensor"], files: Sequence[Path]) -> bool:
    """Return whether two weights of a model without values have the same values in its files, or are not both there by their names."""
    import torch
    from safetensors import safe_open

    names = {name for name, weight in model.named_parameters(remove_duplicate=False) if any(weight is one for one in weights)}
    stored: list[Tensor] = []
    for file in files:
        with safe_open(file, framework="pt") as opened:
            stored += [opened.get_tensor(name) for name in sorted(names & set(opened.keys()))]
    return len(stored) < len(weights) or torch.equal(*stored)


def _flat(names: Any) -> Iterator[str]:
    for name in names:
        yield from (name if isinstance(name, tuple) else (name,))
