"""What a study cost: seconds of devices at a price, energy where a device tells it, quality against money."""

import ctypes
import importlib
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from clusterlora.cli import main
from clusterlora.ports.stores import Stores
from clusterlora.ports.study_store import DeviceUse
from clusterlora.progress import energy
from clusterlora.progress.cost import cost_metrics, study_cost
from clusterlora.progress.timing import timed
from clusterlora.report import figures
from clusterlora.report.data import ReportData
from clusterlora.report.page import page
from clusterlora.settings import RuntimeSettings, Study
from clusterlora.stores.sql import SqlStudyStore
from tests.fixtures.memory import MemoryStudyStore, MemoryTracker

TRAINED = DeviceUse("train", "H100", 7200.0, metered_seconds=7200.0, joules=3.6e6, train_tokens=1_000_000)
COMPARED = DeviceUse("compare", "cpu", 1800.0)


def test_money_is_hours_times_the_price_of_the_kind_of_device() -> None:
    cost = study_cost([TRAINED, COMPARED], RuntimeSettings(gpu_hour_price=3.0, cpu_hour_price=0.5, currency="USD"))
    assert cost.total == pytest.approx(2 * 3.0 + 0.5 * 0.5)
    assert cost.money_per_train_token == pytest.approx(6e-6)
    assert cost.kwh == pytest.approx(1.0)
    assert cost.sentences == (
        "2.50 device hours: 6.25 USD.",
        "1.000 kWh were told by devices for all but 0.50 of the hours; the rest is not guessed.",
    )


def test_what_has_no_price_and_what_tells_no_energy_is_said_and_not_guessed() -> None:
    cost = study_cost([replace(TRAINED, metered_seconds=0.0, joules=0.0), COMPARED], RuntimeSettings(cpu_hour_price=0.5))
    assert (cost.total, cost.kwh, cost.money_per_train_token) == (None, None, None)
    assert "runtime.gpu_hour_price is not set" in cost.sentences[0]
    assert cost.sentences[1] == "No device told its energy; it is not guessed."
    assert cost_metrics(cost) == {"cost/device_hours": 2.5, "cost/seconds/train": 7200.0, "cost/seconds/compare": 1800.0}


def test_a_study_that_did_nothing_says_so_and_names_no_setting() -> None:
    assert study_cost((), RuntimeSettings()).sentences == ("Nothing that a device did for this study is recorded.",)


def test_every_store_adds_up_what_devices_did(tmp_path: Any, seven: Study) -> None:
    from clusterlora.settings import prepared

    for store in (MemoryStudyStore(), SqlStudyStore(f"sqlite:///{tmp_path / 'studies.db'}")):
        store.create_study(prepared(seven, "float32"))
        for use in (TRAINED, COMPARED, TRAINED):
            store.add_device_use("small", use)
        assert store.device_use("small") == (
            COMPARED,
            DeviceUse("train", "H100", 14400.0, metered_seconds=14400.0, joules=7.2e6, train_tokens=2_000_000),
        )


def test_work_that_fails_costs_its_seconds_too(finished_stores: Stores) -> None:
    def used() -> dict[str, float]:
        return {use.phase: use.seconds for use in finished_stores.studies.device_use("small")}

    before, seconds = used(), finished_stores.studies.seconds("small")
    with pytest.raises(ZeroDivisionError), timed(finished_stores, "small", "train", "unified"):
        _ = 1 / 0  # pyrefly: ignore[division-by-zero]
    assert used()["train"] > before["train"]
    assert finished_stores.studies.seconds("small") == seconds


class Nvml:
    """NVIDIA's library as far as energy is concerned: a GPU that has used this much, or tells nothing (3: not supported)."""

    def __init__(self, millijoules: int | None) -> None:
        self.millijoules = millijoules

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: ARG002, N802
        return 0 if uuid == b"GPU-1234" else 2

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, into: Any) -> int:  # noqa: ARG002, N802
        if self.millijoules is None:
            return 3
        ctypes.cast(into, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        return 0


def test_energy_is_what_the_gpu_of_this_process_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy.joules() is None  # a CPU
    monkeypatch.setattr(energy, "_uuid", lambda: "GPU-1234")
    assert energy.joules(Nvml(1500)) == 1.5
    assert energy.joules(Nvml(None)) is None
    monkeypatch.setattr(energy, "_uuid", lambda: "MIG-5678")
    assert energy.joules(Nvml(1500)) is None


def test_a_finished_study_tells_its_cost_in_tracker_report_and_command(
    seven: Study, finished_stores: Stores, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uses = {use.phase: use for use in finished_stores.studies.device_use(seven.name)}
    assert uses["train"].train_tokens > 0
    assert {use.device for use in uses.values()} <= {"cpu"}  # without a GPU
    assert isinstance(finished_stores.tracker, MemoryTracker)
    parent = finished_stores.tracker.runs[seven.name].values
    assert parent["cost/device_hours"] == pytest.approx(sum(use.seconds for use in uses.values()) / 3600, rel=0.2)
    trainings = [run for run in finished_stores.tracker.runs.values() if "train/adapters" in run.values]
    assert all(run.values["cost/device_hours"] > 0 for run in trainings)
    summary = (finished_stores.folder(seven.name) / "results" / "summary.md").read_text(encoding="utf-8")
    assert "Quality against money." in summary
    assert "runtime.cpu_hour_price is not set" in summary
    # By its name in `cli`, it is the command itself.
    monkeypatch.setattr(importlib.import_module("clusterlora.cli.cost"), "open_local_stores", lambda: finished_stores)
    assert main(["study", "cost", seven.name, "--cpu-hour-price", "3600", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["money"] == pytest.approx(record["device_seconds"])
    assert main(["study", "cost", seven.name]) == 0
    assert "No device told its energy" in capsys.readouterr().out


def test_the_report_draws_quality_over_money_where_it_is_known(report_data: ReportData) -> None:
    priced = replace(report_data, costs=tuple(replace(cost, money=0.1 * n) for n, cost in enumerate(report_data.costs)), currency="USD")
    views = [view["name"] for view in figures.costs(priced.comparison, priced.costs, "USD")["views"]]
    assert views[0] == "USD of training"
    assert "cost (USD)" in page(priced)
    unpriced = [view["name"] for view in figures.costs(report_data.comparison, report_data.costs, "USD")["views"]]
    assert unpriced == views[1:]
    assert math.isfinite(sum(figures.costs(priced.comparison, priced.costs, "USD")["data"][0]["x"]))
