"""The benchmark of one GPU: what it measures with, what it writes and when it leaves a part out; speed itself is never asserted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import page, peers, results
from benchmarks.gpu.parts import Part, Peers, Setting
from benchmarks.gpu.plan import FULL, TINY
from benchmarks.gpu.shapes import MISSION, RESPONSE_QUANTILES, SHAPES, TOTAL_QUANTILES, Lengths, random_base, rows

OWN = [part.name for part in TINY if part.name in ("135m-128", "135m-1", "profile-135m-128", "pack-4096", "answers-64")]


@dataclass(frozen=True)
class Broken:
    """A part that fails."""

    name: str = "broken"
    usual_seconds: float = 0

    def describe(self) -> Mapping[str, Any]:
        return {}

    def measure(self, at: Setting) -> list[dict[str, Any]]:
        raise RuntimeError(f"no room on {at.device}\nand more lines")


def run(folder: Path, *arguments: str) -> int:
    return gpu.main(["--tiny", "--out", str(folder), "--revision", "abc", *arguments])


def test_every_own_part_is_written_with_card_revision_command_and_day_and_the_page_has_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--part", *OWN) == 0
    records = results.read(tmp_path / results.FILE)
    assert list(records) == ["card", *OWN]
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    for record in records.values():
        assert record.failed is None
        assert record.rows
        assert (record.revision, record.card["name"], record.date[:2]) == ("abc", "no GPU", "20")
        assert f"{record.part} {record.seconds:.0f} s" in text
    assert f"{records['135m-128'].rows[0]['tokens_per_second']:,.0f}" in text
    assert f"`{records['135m-1'].command}`, no GPU (0 GiB, driver none, CUDA none), revision abc" in text
    assert records["answers-64"].rows[0]["mean_new_tokens"] <= 3
    assert "1 passes of 2 adapters" in (tmp_path / "profile-135m-128.txt").read_text(encoding="utf-8")
    # What is there for this card and revision is not measured again, unless it is named.
    capsys.readouterr()
    assert run(tmp_path, "--minutes", "0") == 0
    said = capsys.readouterr().out
    assert "135m-1: measured before on this card at abc" in said
    assert "135m-128-peers: left out, it usually takes 60 s and" in said
    assert results.read(tmp_path / results.FILE)["135m-1"] == records["135m-1"]


def test_the_page_says_which_figures_are_not_there_yet() -> None:
    assert {part.name for part in FULL if not part.name.startswith(("card", "profile-"))} == set(results.FIGURES)
    text = page.page(Path("nowhere"))
    assert all(f"`{part}`" in text for part in results.FIGURES)


def test_a_part_that_fails_is_recorded_in_one_line_tried_again_and_keeps_no_other_from_being_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after: Part = next(part for part in TINY if part.name == "135m-128")
    monkeypatch.setattr(gpu, "TINY", (TINY[0], Broken(), after))
    assert run(tmp_path) == 1
    records = results.read(tmp_path / results.FILE)
    assert records["broken"].failed == "RuntimeError: no room on cpu"
    assert records["135m-128"].rows
    assert "- broken: RuntimeError: no room on cpu" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert run(tmp_path) == 1
    assert "broken: begins" in capsys.readouterr().out


def test_without_a_gpu_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "there is no GPU on this machine that PyTorch can use" in line
    assert not list(tmp_path.iterdir())


def test_the_page_can_be_written_from_the_results_alone_and_keeps_the_prose(tmp_path: Path) -> None:
    assert run(tmp_path, "--part", "135m-1") == 0
    written = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    (tmp_path / "gpu.md").unlink()
    assert gpu.main(["--page", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8") == written == page.page(tmp_path / results.FILE)
    assert "## Differences from a CPU" in written
    assert "## Earlier measurements" in written


def test_lengths_are_those_of_the_missions_prompts() -> None:
    drawn = rows(SHAPES["SmolLM2-135M"], 2000, MISSION, seed=1)
    assert fmean(len(row.ids) for row in drawn) == pytest.approx(fmean(TOTAL_QUANTILES), rel=0.03)
    assert fmean(row.n_response_tokens for row in drawn) == pytest.approx(fmean(RESPONSE_QUANTILES), rel=0.05)
    (fixed,) = rows(SHAPES["Llama-3.1-8B"], 1, Lengths((512, 256)), seed=1)
    assert (len(fixed.ids), fixed.n_response_tokens) == (512, 256)


@pytest.mark.parametrize(
    ("name", "billions"), [("SmolLM2-135M", 0.1345), ("Qwen2.5-0.5B", 0.494), ("Qwen2.5-1.5B", 1.544), ("Llama-3.1-8B", 8.03)]
)
def test_a_shape_has_as_many_weights_as_the_model_it_is_named_after(name: str, billions: float) -> None:
    model = random_base(SHAPES[name], torch.device("meta")).model
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.005)
    assert model.dtype == torch.bfloat16


@pytest.mark.whole  # a process of its own imports PyTorch and transformers
def test_a_peer_whose_process_ends_early_is_reported_with_what_it_said_last(tmp_path: Path) -> None:
    absent = peers.PeerRun(shape="no such shape", device="cpu", dialogues=2, fixed_lengths=None, peers=(peers.TRAINER,))
    (result,) = peers.measure(absent, seconds=120)
    assert result["peer"] == peers.TRAINER
    assert result["missing"] == "its process ended with exit status 1: KeyError: 'no such shape'"
    assert json.loads(json.dumps(result)) == result


def test_every_peer_is_measured_beside_the_missions_adapters_and_no_two_parts_share_a_name() -> None:
    names = [part.name for part in FULL]
    assert len(set(names)) == len(names)
    beside = [part for part in FULL if isinstance(part, Peers) and part.beside.name == "135m-128"]
    assert {peer for part in beside for peer in part.peers} == set(peers.NEEDS)
