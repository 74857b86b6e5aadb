"""The plan of a study that goes on from another: which adapters go on, which are kept as they are, and who has a prior.

An adapter goes on where somebody whom it learns from has news: it starts from its weights of before and learns the news, with a share of
old dialogues replayed. Without news it is kept under its key, and answers on the adapter that it was trained on, however many refreshes
ago that was. What was not there before, or for other people, is trained from the start; so are the clusters' adapters where everybody was
clustered anew.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from clusterlora.data.refresh import drawn
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.metadata import News, RefreshStart
from clusterlora.method_settings import RefreshSettings
from clusterlora.methods.last_champion import is_kept_from_before, kept_adapter
from clusterlora.methods.method import composition_of
from clusterlora.values import AdapterComposition, AdapterSpec, Dataset, Dialogue, MethodPlan, Persona, WeightedAdapter

WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the own adapter in the answers of somebody with few dialogues, from which val chooses; the shared adapter has the rest."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a refresh goes on from, what is new since, how it goes on, and whether its people were clustered anew."""

    start: RefreshStart
    news: News
    settings: RefreshSettings
    anew: bool = False

    def plans(self, methods: Mapping[str, MethodPlan], dataset: Dataset) -> dict[str, MethodPlan]:
        """Return the plans of a study's methods as they go on."""
        people = dataset.by_id()
        with_priors = {name: self._with_prior(plan, methods, people) for name, plan in methods.items()}
        return {name: self._continued(plan, people) for name, plan in with_priors.items()}

    def _continued(self, plan: MethodPlan, people: Mapping[str, Persona]) -> MethodPlan:
        before = {_whose(one.spec): one for one in self.start.adapters if not is_kept_from_before(one.spec)}
        named = {one.spec.name: one for one in self.start.adapters}
        specs: dict[str, AdapterSpec] = {}
        instead: dict[str, dict[str, str]] = {}
        for spec in plan.adapters:
            old = before.get(_whose(spec))
            if spec.kept or old is None or (self.anew and spec.scope == "cluster") or not _goes_on(old.spec, spec):
                specs[spec.name] = spec
                continue
            learns_from = self._learns_from(spec, people)
            if learns_from:
                last = kept_adapter(old)
                specs[last.name] = last
                specs[spec.name] = replace(spec, init_from=last.name, learns_from=learns_from)
                continue
            specs[spec.name] = replace(spec, kept=old.key, init_from=None, frozen_adapter=None)
            if spec.frozen_adapter is not None and old.spec.frozen_adapter is not None:
                # It was trained on the other adapter as that was, and answers with that one.
                under = kept_adapter(named[old.spec.frozen_adapter])
                specs[under.name] = under
                specs[spec.name] = replace(specs[spec.name], frozen_adapter=under.name)
                instead[spec.name] = {spec.frozen_adapter: under.name}

        def answered(arm: AdapterComposition) -> AdapterComposition:
            other = {old: new for name in arm.adapter_names for old, new in instead.get(name, {}).items()}
            return replace(arm, adapters=tuple(replace(one, name=other.get(one.name, one.name)) for one in arm.adapters))

        arms = tuple((p, tuple(dict.fromkeys(map(answered, compositions)))) for p, compositions in plan.arms_by_persona)
        return replace(plan, adapters=tuple(specs.values()), arms_by_persona=arms)

    def _learns_from(self, spec: AdapterSpec, people: Mapping[str, Persona]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return the new train dialogues of an adapter's people with old ones to replay; nothing where nobody has news."""
        news = {p: frozenset(ids) for p, ids in self.news.dialogues}
        train = [(p, dialogue) for p in spec.persona_ids for dialogue in people[p].of_split("train")]
        new = [(p, dialogue) for p, dialogue in train if dialogue.id in news.get(p, ())]
        if not new:
            return ()
        old = [(p, dialogue) for p, dialogue in train if dialogue.id not in news.get(p, ())]
        share = self.settings.replay
        replayed = drawn(old, round(len(new) * share / (1 - share)), salt=f"replay {self.start.study} {spec.label}")
        return _by_person(new, replayed, spec.persona_ids)

    def _with_prior(self, plan: MethodPlan, methods: Mapping[str, MethodPlan], people: Mapping[str, Persona]) -> MethodPlan:
        """Return the plan in which people with few dialogues, whose adapter is theirs alone, are mixed with their cluster's or unified."""
        own = {
            spec.persona_ids[0]: spec
            for spec in plan.adapters
            if spec.scope == "person" and spec.frozen_adapter is None and not spec.imported and not spec.kept
        }
        few = {p: spec for p, spec in own.items() if len(people[p].of_split("train")) < self.settings.own_adapter_from}
        shared = methods.get("cluster", methods.get("unified"))
        if not few or shared is None or plan.arms_may_lack:
            return plan
        group = {p: compositions[0] for p, compositions in shared.arms_by_persona}
        arms = tuple(
            (p, _mixed(group[p], few[p]) if p in few and compositions == (composition_of(few[p]),) else compositions)
            for p, compositions in plan.arms_by_persona
        )
        return replace(plan, adapters=tuple(dict.fromkeys((*shared.adapters, *plan.adapters))), arms_by_persona=arms)


def _mixed(shared: AdapterComposition, own: AdapterSpec) -> tuple[AdapterComposition, ...]:
    """Return the shared adapter alone, then with ever more of the own one instead."""
    if not ADAPTER_KINDS[own.recipe.kind].is_additive:
        return shared, composition_of(own)
    mixtures = (
        (
            *(WeightedAdapter(one.name, one.weight * (1 - weight)) for one in shared.adapters if weight < 1),
            WeightedAdapter(own.name, weight),
        )
        for weight in WEIGHTS
    )
    return shared, *(AdapterComposition(adapters) for adapters in mixtures)


def _whose(spec: AdapterSpec) -> tuple[str, ...]:
    """Return what an adapter is found by among those of before: its label, or of one person's, whose numbers may change, the person."""
    return (spec.folder, *spec.persona_ids) if spec.scope == "person" else (spec.label,)


def _goes_on(old: AdapterSpec, new: AdapterSpec) -> bool:
    """Return whether an adapter can start from this older one: for these people or some of them, of the same form and prompt."""
    if new.merge_of or new.imported or new.shots or new.seed or (old.frozen_adapter is None) != (new.frozen_adapter is None):
        return False
    same = ("scope", "cluster", "shots", "persona_in_prompt")
    forms = [(r.kind, r.rank, r.alpha, r.target_modules) for r in (old.recipe, new.recipe)]
    return forms[0] == forms[1] and set(old.persona_ids) <= set(new.persona_ids) and all(getattr(old, f) == getattr(new, f) for f in same)


def _by_person(
    new: Iterable[tuple[str, Dialogue]], replayed: Mapping[str, tuple[str, ...]], persona_ids: Iterable[str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    ids: dict[str, list[str]] = {}
    for p, dialogue in new:
        ids.setdefault(p, []).append(dialogue.id)
    for p, old in replayed.items():
        ids.setdefault(p, []).extend(old)
    return tuple((p, tuple(ids[p])) for p in persona_ids if p in ids)
