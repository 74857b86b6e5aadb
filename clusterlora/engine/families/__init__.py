"""Families of base models whose forward and backward pass is written out; any other runs through transformers, equal and slower."""

import logging
from weakref import WeakKeyDictionary

from torch import nn

from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.families.gemma import Gemma
from clusterlora.engine.families.gpt2 import GPT2
from clusterlora.engine.families.llama import Llama
from clusterlora.engine.families.phi3 import Phi3
from clusterlora.engine.placement import devices_of, is_spread

log = logging.getLogger(__name__)

FAMILIES: dict[str, type[Decoder]] = {name: family for family in (Llama, Phi3, Gemma, GPT2) for name in family.architectures}
"""The family of each transformers class."""

_decoders: "WeakKeyDictionary[nn.Module, Decoder | None]" = WeakKeyDictionary()


def decoder_of(model: nn.Module) -> Decoder | None:
    """Return the model written out, cached; None, with one line in the log, if no family computes what it does."""
    decoder = _decoders.get(model)
    if model not in _decoders or (decoder is not None and decoder.is_stale):
        reason = _why_not(model)
        if reason is not None:
            log.warning("%s runs through transformers, several times slower: %s", type(model).__name__, reason)
        decoder = _decoders[model] = None if reason is not None else FAMILIES[type(model).__name__](model)
    return decoder


def _why_not(model: nn.Module) -> str | None:
    """Return why a model runs through transformers; None if a family writes it out."""
    if is_spread(model):
        return f"its layers are spread over {', '.join(map(str, devices_of(model)))}"
    family = FAMILIES.get(type(model).__name__)
    return f"engine/families writes out {', '.join(FAMILIES)}" if family is None else family.unsupported(model)
