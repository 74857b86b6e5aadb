"""All criteria of the gate, in the order of the report. Each returns None if its setting is off."""

from collections.abc import Callable

import numpy as np

from clusterlora.catalog import Catalog
from clusterlora.gate.criteria.above_random_group import above_random_group
from clusterlora.gate.criteria.above_unified import above_unified
from clusterlora.gate.criteria.mean_similarity import mean_similarity
from clusterlora.gate.criteria.second_headline import second_headline
from clusterlora.gate.criteria.share_of_personas_improved import share_of_personas_improved
from clusterlora.gate.criteria.worst_persona import worst_persona
from clusterlora.gate.trial import Trial
from clusterlora.settings import GateSettings
from clusterlora.values import Criterion

Judgement = Callable[[Trial, GateSettings, np.random.Generator], Criterion | None]

CRITERIA: Catalog[Judgement] = Catalog(
    "gate criterion",
    {
        "mean_similarity": mean_similarity,
        "above_unified": above_unified,
        "worst_persona": worst_persona,
        "share_of_personas_improved": share_of_personas_improved,
        "second_headline": second_headline,
        "above_random_group": above_random_group,
    },
)
