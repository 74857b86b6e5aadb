"""What a sentence-transformers folder must be: every weight of its own, and a row for every token and position of any text."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from clusterlora.errors import ModelUnavailable, printable
from clusterlora.models.checks import known_positions, read_settings, refuse_other_weights, refuse_stored_otherwise
from clusterlora.models.checks import refuse_tokens_without_embedding as refuse_tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import PreTrainedModel

ADDED_TOKENS = 2
"""Tokens that a model puts around every text."""
_SETTINGS = ("sentence_*_config.json", "*/sentence_*_config.json")
"""Where a folder tells how many tokens are read; older ones name their model's family, and keep it in a folder of its own."""
_POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe")
"""What transformers calls a table of absolute positions."""
_COUNTS_FROM_PADDING = "create_position_ids_from_inputs_embeds"
"""The method of embeddings of RoBERTa's kind, whose positions begin after the padding token's id."""
_CONSTANTS = (".masked_bias", ".attn.bias", ".attention.bias", ".inv_freq", ".position_ids", ".token_type_ids")
"""How names end under which older checkpoints hold what is computed: masks, frequencies and counts."""
_INSERTED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
"""Special tokens that a tokenizer puts into any text."""
_ONE_AT_A_TIME = Lock()

Loaded = list[tuple["PreTrainedModel", Mapping[str, Any]]]
"""Models, each with what transformers tells of the weights that it found for it."""


@contextmanager
def checked_loading(folder: Path) -> Generator[Loaded]:
    """Check what transformers loads from a folder inside the block, and collect what it tells of the weights.

    sentence-transformers loads its models without asking, and transformers fills in random numbers for weights that it does not find.

    Raises:
        ModelUnavailable: the weights are too few for the layers, stored twice, or integers.
    """
    from transformers import PreTrainedModel

    loaded: Loaded = []
    with _ONE_AT_A_TIME:
        original = PreTrainedModel.__dict__["from_pretrained"]

        def from_pretrained(cls: Any, name: object, *arguments: Any, **options: Any) -> Any:
            if str(name) != str(folder):
                return original.__func__(cls, name, *arguments, **options)
            refuse_stored_otherwise(folder / options.get("subfolder", ""))
            told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, info = original.__func__(cls, name, *arguments, **{**options, **told})
            loaded.append((model, info))
            return model

        PreTrainedModel.from_pretrained = classmethod(from_pretrained)
        try:
            yield loaded
        finally:
            PreTrainedModel.from_pretrained = original


def refuse_random_weights(model: "SentenceTransformer", folder: Path, loaded: Loaded) -> None:
    """Check that a folder had the weights of its models. A pooler that is not asked may be missing, and heads may be left over.

    Raises:
        ModelUnavailable: weights are missing, of another shape, left over inside the model, or an adapter's.
    """
    for transformer in _transformers(model):
        own, settings = transformer.model, str(transformer.modality_config)
        info = next((info for one, info in loaded if one is own), None)
        # Of a model with an adapter, transformers tells of the adapter's weights alone.
        if info is None or getattr(own, "_hf_peft_config_loaded", False):
            raise ModelUnavailable(
                f"embedding model folder {folder} also holds an adapter (adapter_config.json), whose base may be elsewhere; merge it "
                "(merge_and_unload) and save the whole as a new folder"
            )
        is_pooled = "pooler_output" in settings
        computed = {name for name, _ in own.named_buffers()}
        missing = {name for name in info["missing_keys"] if name not in computed and (is_pooled or name.partition(".")[0] != "pooler")}
        children = {name for name, _ in own.named_children()}
        prefix = f"{own.base_model_prefix}."
        inside = {
            name
            for name in info["unexpected_keys"]
            if name.removeprefix(prefix).partition(".")[0] in children and not name.endswith(_CONSTANTS)
        }
        renamed = next((other for name in sorted(missing) for other in sorted(info["unexpected_keys"]) if other.endswith(f".{name}")), None)
        remedy = {"remedy": f"it holds {printable(renamed)} instead: save the model without what is around it"} if renamed else {}
        refuse_other_weights(folder, {**info, "missing_keys": missing, "unexpected_keys": inside}, **remedy)


def refuse_unreadable_texts(model: "SentenceTransformer", folder: Path) -> None:
    """Check that a model has a row for every token of its tokenizer, and for every position of the longest text that it is told to read.

    A folder that tells no length reads what there are positions for. A special token that no text needs and that has no row, as Gemma's
    for images, is read as the letters that it is written with.

    Raises:
        ModelUnavailable: it has not.
    """
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    for transformer in _transformers(model):
        limit, n_positions, n_rows = transformer.max_seq_length, _n_positions(transformer.model), _n_embeddings(transformer.model)
        if limit is not None and n_positions is not None and limit > n_positions:
            if (file := _file_of_length(folder)) is not None and most_tokens(folder) is not None:
                raise ModelUnavailable(
                    f"{file} has max_seq_length = {limit}, and the model has positions for {n_positions} tokens; write {n_positions} there"
                )
            transformer.max_seq_length = n_positions
        tokenizer: Any = transformer.tokenizer
        if tokenizer is None:
            continue
        beyond = {token for token, number in tokenizer.get_vocab().items() if number >= n_rows}
        inserted = {str(getattr(tokenizer, name)) for name in _INSERTED}
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        if beyond and beyond <= special - inserted:
            tokenizer.split_special_tokens = True
        else:
            refuse_tokens(tokenizer, n_rows)
    for module in model.modules():
        if isinstance(module, StaticEmbedding) and (n_tokens := max(module.tokenizer.get_vocab().values()) + 1) > module.num_embeddings:
            raise ModelUnavailable(
                f"the tokenizer in {folder} has {n_tokens} tokens, and the weights have rows for {module.num_embeddings}; bring the two of "
                "one model together"
            )


def most_tokens(folder: Path) -> int | None:
    """Return the tokens of a text that a sentence-transformers model reads, those it adds included; None where its folder does not tell.

    Raises:
        ModelUnavailable: it tells no number of tokens.
    """
    file = _file_of_length(folder)
    limit = read_settings(file).get("max_seq_length") if file else None
    if limit is not None and (type(limit) is not int or limit <= ADDED_TOKENS):
        raise ModelUnavailable(
            f"{file} has max_seq_length = {printable(repr(limit))}, which is no number of tokens of a text; get it again from where the "
            "model comes from"
        )
    return limit


def _file_of_length(folder: Path) -> Path | None:
    return next((file for pattern in _SETTINGS for file in sorted(folder.glob(pattern))), None)


def _transformers(model: "SentenceTransformer") -> list["Transformer"]:
    from sentence_transformers.sentence_transformer.modules import Transformer

    return [module for module in model.modules() if isinstance(module, Transformer)]


def _n_embeddings(model: "PreTrainedModel") -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _n_positions(model: "PreTrainedModel") -> int | None:
    """Return the tokens that a model has absolute positions for; None where positions are relative or rotate, and so have no end."""
    from torch.nn import Embedding

    known = known_positions(model.config)
    tables: list[tuple[Any, Any]] = [(parent, getattr(parent, name, None)) for parent in model.modules() for name in _POSITIONS]
    # A model of images beside it has a table of its own.
    rows = [
        table.num_embeddings - _first_position(parent, table)
        for parent, table in tables
        if isinstance(table, Embedding) and known is not None and table.num_embeddings >= known
    ]
    return min((*rows, known)) if rows and known is not None else None


def _first_position(parent: Any, table: Any) -> int:
    """Return the row of the first position: the tables of OPT and BART begin at an offset."""
    return parent.padding_idx + 1 if hasattr(parent, _COUNTS_FROM_PADDING) else getattr(table, "offset", 0)
