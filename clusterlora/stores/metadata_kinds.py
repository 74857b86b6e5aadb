"""The kinds of metadata a study has, and the name of each in the database."""

from collections.abc import Mapping

from clusterlora import metadata
from clusterlora.evaluation.memorisation import Memorisation
from clusterlora.gate.ceiling import Ceiling
from clusterlora.gate.power import Power
from clusterlora.persona_signal.measure import PersonaSignal

NAME_BY_KIND: Mapping[type, str] = {
    metadata.Provenance: "provenance",
    metadata.DataWarnings: "data_warnings",
    metadata.TrackerPage: "tracker_page",
    metadata.Probe: "probe",
    metadata.Workers: "workers",
    metadata.Cut: "cut",
    metadata.TruthAgreement: "truth_agreement",
    metadata.ReferencePoints: "reference_points",
    metadata.GateDecisions: "gate_decisions",
    metadata.Tuning: "tuning",
    metadata.Refinement: "refinement",
    metadata.ImportedAdapters: "imported_adapters",
    metadata.ImportedScores: "imported_scores",
    metadata.ComparisonSummary: "comparison_summary",
    metadata.RegisteredChampion: "registered_champion",
    metadata.RefreshStart: "refresh_start",
    metadata.News: "news",
    metadata.WatchedFiles: "watched_files",
    metadata.Regrouping: "regrouping",
    metadata.RefreshOutcome: "refresh_outcome",
    metadata.Forgotten: "forgotten",
    PersonaSignal: "signal",
    Memorisation: "memorisation",
    Power: "gate_power",
    Ceiling: "gate_ceiling",
}
"""A name never changes once it is in use: databases hold it."""
