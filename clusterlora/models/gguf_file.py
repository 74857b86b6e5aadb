"""What a GGUF file holds, compared with what its own description asks for; its tensors are not dequantised."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.errors import ModelUnavailable
from clusterlora.models.checks import refuse_other_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_other_tensors(file: Path, model: "PreTrainedModel") -> None:
    """Check that a GGUF file is whole and has exactly the tensors of its model, which may be on the meta device.

    Of experts, which transformers stores as one parameter and GGUF does not, only the load tells.

    Raises:
        ModelUnavailable: it is truncated, lacks tensors, or holds others, which transformers would leave out without a word.
    """
    shapes = tensor_shapes(file)
    expected, has_unnamed = _expected(file, model)
    info: dict[str, Any] = {
        "missing_keys": expected.keys() - shapes.keys(),
        "unexpected_keys": set() if has_unnamed else shapes.keys() - expected.keys(),
        # GPT-2 stores its weights transposed.
        "mismatched_keys": {name for name, shape in expected.items() if name in shapes and shapes[name] not in (shape, shape[::-1])},
    }
    refuse_other_weights(file, info, remedy="get another file of this model, made by a converter that knows its architecture")


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a file, in PyTorch's order. Raises ModelUnavailable."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelUnavailable(
            f"the GGUF file {file} is truncated or damaged ({error}); get it again from where the model comes from"
        ) from error
    return {str(tensor.name): tuple(int(size) for size in reversed(tensor.shape)) for tensor in tensors}


def _expected(file: Path, model: "PreTrainedModel") -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return the shape of each tensor that GGUF has for a model, and whether the model has parameters that GGUF has no name for."""
    import gguf

    architecture = gguf.GGUFReader(file).get_field("general.architecture")
    name = architecture.contents() if architecture is not None else None
    known = next((arch for arch, named in gguf.MODEL_ARCH_NAMES.items() if named == name), None)
    if known is None:
        return {}, True
    names = gguf.get_tensor_name_map(known, model.config.get_text_config().num_hidden_layers)
    # Tied weights come once.
    by_name = {parameter: names.get_name(parameter, try_suffixes=(".weight", ".bias")) for parameter, _ in model.named_parameters()}
    sizes = {parameter: tuple(tensor.shape) for parameter, tensor in model.named_parameters()}
    return {found: sizes[parameter] for parameter, found in by_name.items() if found is not None}, None in by_name.values()
