"""The studies of an empirical null: a study's own data and settings, with everybody's dialogues exchanged at random."""

from dataclasses import replace

from clusterlora.settings import Study, check_study_name


def null_studies(study: Study, times: int) -> tuple[Study, ...]:
    """Return `times` studies that differ from this one in name, in whose dialogues are whose, and in asking nobody about the gate.

    Raises:
        BadSettings: the study's name is too long for a suffix.
    """
    gate = replace(study.gate, on_failure="stop") if study.gate.on_failure == "ask" else study.gate
    return tuple(
        replace(study, name=check_study_name(f"{study.name}-null-{seed:02d}"), data=replace(study.data, permute_seed=seed), gate=gate)
        for seed in range(1, times + 1)
    )
