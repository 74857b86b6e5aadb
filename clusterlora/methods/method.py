"""The input of a method, its type, and the parts that methods share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from clusterlora.metadata import ImportedAdapters, RefreshStart
from clusterlora.method_settings import MergeSettings, RetrievalSettings
from clusterlora.recipe import Recipe
from clusterlora.values import AdapterComposition, AdapterSpec, MethodPlan, WeightedAdapter

NOTHING_IMPORTED = ImportedAdapters()
RETRIEVAL = RetrievalSettings()
BASE = AdapterComposition()
"""The base model alone."""


@dataclass(frozen=True, slots=True)
class StudyView:
    """Everything a method may depend on: the personas, their clusters, and how adapters are trained.

    `members[k]` are the personas of cluster k. `cluster_recipe` and `cluster_init` are those of the rung that passed the gate.
    `others` are the plans of the study's other methods, controls aside, for methods that choose among them. `imported` are the adapters
    that were trained elsewhere and brought into the study. `retrieval` says what prompts may show. `tuned` are the recipes that
    are tried or were chosen, by method; `cluster_recipe` is that of `cluster`. `start` is what a refresh goes on from.
    """

    persona_ids: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    recipe: Recipe
    cluster_recipe: Recipe
    cluster_init: str | None
    others: Mapping[str, MethodPlan]
    merging: MergeSettings
    imported: ImportedAdapters = NOTHING_IMPORTED
    retrieval: RetrievalSettings = RETRIEVAL
    tuned: Mapping[str, Recipe] = field(default_factory=dict[str, Recipe])
    start: RefreshStart | None = None

    def recipe_of(self, method: str) -> Recipe:
        """Return the recipe of a method's adapters: the one that was chosen for it, else the study's."""
        return replace(self.tuned.get(method, self.recipe), seed=self.recipe.seed)


@dataclass(frozen=True, slots=True)
class Method:
    """An entry of METHODS: a method's plan, and its role in a comparison.

    A control explains where the gain of other methods comes from; it is never the champion, nor an arm of another method. With
    `contrast_with`, the verdict states how much of that method's gain remains over this one, which it calls by its `phrase`. With a
    `cause`, only a win over this control shows that the gain has this cause, for example that "the people of a cluster are alike".
    `is_base` is the base model without adapters: it is compared, and never the champion.
    `needs_import` says that its adapters were trained elsewhere: it can be asked for only after `clusterlora study import`.
    `needs_refresh` says that it is there in a refresh alone, which `clusterlora study refresh` makes.
    A method that `needs_clusters` would be another one, or have nothing to explain, where all personas are one cluster.
    A method that `retrieves` shows train exchanges in its prompts, as many as the study's settings choose on val; `shots` is how many
    a method shows whatever the settings.
    A method that `adds_adapters`, by merging or by stacking them, needs a kind of adapter that is a sum of updates.
    `recipes` are the methods by whose recipes its adapters are trained: its own name among them where it has one of its own, which
    `study run --tune` then chooses with the same budget as everybody's; the names of others whose adapters, or like ones, it uses.
    """

    plan: Callable[[StudyView], MethodPlan]
    is_control: bool = False
    contrast_with: str | None = None
    phrase: str = ""
    cause: str = ""
    is_base: bool = False
    needs_import: bool = False
    needs_refresh: bool = False
    needs_clusters: bool = False
    adds_adapters: bool = False
    retrieves: bool = False
    shots: int = 0
    recipes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a contrast without a phrase, a cause without a contrast, or a contrast with a method that is no control."""
        if bool(self.contrast_with) != bool(self.phrase):
            raise ValueError(f"contrast_with={self.contrast_with!r} and phrase={self.phrase!r} belong together; give both or neither")
        if self.cause and not self.contrast_with:
            raise ValueError(f"cause={self.cause!r} is of the gain of a method; name it with contrast_with")
        if self.contrast_with and not self.is_control:
            raise ValueError(f"contrast_with={self.contrast_with!r}: methods are contrasted with controls; say is_control=True")


def composition_of(adapter: AdapterSpec) -> AdapterComposition:
    """Return the composition that is this adapter alone."""
    return AdapterComposition((WeightedAdapter(adapter.name),))


def unified_adapter(view: StudyView) -> AdapterSpec:
    """Return the adapter that learns from everyone."""
    return AdapterSpec(name="unified", persona_ids=view.persona_ids, recipe=view.recipe_of("unified"), scope="everybody")
