"""What the documentation shows is true: its examples run, its commands exist, its links lead somewhere."""

import datetime
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import clusterlora
from clusterlora.cli import cli
from clusterlora.clustering.features import Sources
from clusterlora.data.problems import Problems
from clusterlora.evaluation.metric import Scorable
from clusterlora.gate.trial import trial
from clusterlora.methods.method import StudyView
from clusterlora.settings import DataSettings, GateSettings, MergeSettings, Recipe
from clusterlora.values import Dialogue, Persona, Turn

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    REPOSITORY / "README.md",
    *(REPOSITORY / "docs" / f"{name}.md" for name in ("tutorial", "extending", "operations", "faq", "methods")),
]


class NoEmbedder:
    name = revision = "none"

    def encode(self, texts: Any) -> Any:
        raise AssertionError(f"the example needs no embeddings, but asked for {len(texts)}")


@pytest.fixture(scope="module")
def examples() -> dict[str, dict[str, Any]]:
    """Return what each example of docs/extending.md defines, by its section."""
    found: dict[str, dict[str, Any]] = {}
    for section in (REPOSITORY / "docs" / "extending.md").read_text().split("\n## ")[1:]:
        for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(compile(code, section.splitlines()[0], "exec"), found.setdefault(section.splitlines()[0], {}))
    return found


def test_the_method_of_the_documentation_answers_everybody_with_what_it_plans(examples: dict[str, dict[str, Any]]) -> None:
    people = ("ana", "ben", "cleo")
    plan = examples["A method"]["pairs"](StudyView(people, (people,), Recipe(), Recipe(), None, {}, MergeSettings()))
    assert [a.persona_ids for a in plan.adapters] == [("ana", "ben"), ("cleo",)]
    assert [p for p, _ in plan.arms_by_persona] == list(people)


def test_the_clustering_algorithm_of_the_documentation_describes_personas(examples: dict[str, dict[str, Any]]) -> None:
    dialogue = Dialogue("d", (Turn("user", "hi"), Turn("assistant", "one two three")), split="train")
    (evidence,) = examples["A clustering algorithm"]["verbosity"]((Persona("ana", None, (dialogue,)),), Sources(NoEmbedder()))
    assert evidence.tolist() == [[3.0]]


def test_the_metric_of_the_documentation_scores_answers(examples: dict[str, dict[str, Any]]) -> None:
    metric = examples["A metric"]["FIRST_WORD"]
    answers = Scorable(texts=["Yes, sir", "No"], references=["Yes, madam", "Yes"], embedder=NoEmbedder())
    assert metric.score(answers).tolist() == [1.0, 0.0]


def test_the_criterion_of_the_documentation_judges_a_trial(examples: dict[str, dict[str, Any]]) -> None:
    scores = {"ana": np.array([0.5, 0.5]), "ben": np.array([0.9])}
    better = {"ana": np.array([0.3, 0.3]), "ben": np.array([0.9])}
    found = examples["A criterion of the gate"]["nobody_loses_much"](trial(better, scores), GateSettings(), np.random.default_rng(0))
    assert not found.passed
    assert "ana changes most for the worse: -20.00" in found.explanation


def test_the_source_of_the_documentation_reads_a_file_and_names_what_it_cannot(examples: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("ana | lights on | done\nnonsense\n")
    problems = Problems()
    reading = examples["A data source"]["read_diary"](DataSettings(source="table", path=str(tmp_path / "notes.txt")), problems)
    assert reading.dataset.ids == ("ana",)
    assert (problems.count, problems.listed[0].place.line) == (1, 2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_is_written_exists(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(
        r"clusterlora((?: [a-z-]+)+[^\n`|&;)]*)", "\n".join(re.findall(r"(?:`|^)(clusterlora .*?)(?:`|$|#)", text, re.MULTILINE))
    ):
        command: click.Command = cli
        words = line.split()
        while words and isinstance(command, click.Group):
            word = words.pop(0)
            if word not in command.commands:
                break
            command = command.commands[word]
        assert command is not cli, f"{page.name}: clusterlora {line} is no command"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        for word in words:
            assert not word.startswith("--") or word in known, f"{page.name}: clusterlora {line} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_changelog_has_the_version_that_is_installed_as_its_last_release() -> None:
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    dates = [datetime.date.fromisoformat(day) for _, day in releases]
    assert dates == sorted(dates, reverse=True)
    assert releases[0][0] == clusterlora.__version__ == tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("file", ["deployments/pools/gpu-docker.json", "deployments/pools/gpu-kubernetes.json", "docker/compose.yaml"])
def test_images_are_tagged_with_the_version_that_is_installed(file: str) -> None:
    assert set(re.findall(r"clusterlora-(?:worker|server):([\w.]+)", (REPOSITORY / file).read_text())) == {clusterlora.__version__}
