"""The documentation is true: its examples run, its commands exist, its links resolve."""

import datetime
import importlib.util
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import clusterlora
from clusterlora.catalog import Catalog
from clusterlora.cli import cli
from clusterlora.clustering import ALGORITHMS
from clusterlora.clustering.features import Sources
from clusterlora.data import SOURCES
from clusterlora.data.problems import Problems
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.gate.criteria import CRITERIA
from clusterlora.gate.trial import trial
from clusterlora.method_settings import MergeSettings
from clusterlora.methods import METHODS
from clusterlora.methods.method import StudyView
from clusterlora.recipe import Recipe
from clusterlora.settings import DataSettings, GateSettings
from clusterlora.values import Dialogue, Persona, Turn
from tests.fixtures.examples import examples_of_extending

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")])


def of_repository(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


README = (REPOSITORY / "README.md").read_text()


class NoEmbedder:
    name = revision = "none"

    def encode(self, texts: Any) -> Any:
        raise AssertionError(f"the example needs no embeddings, but asked for {len(texts)}")


@pytest.fixture(scope="module")
def examples() -> dict[str, dict[str, Any]]:
    return examples_of_extending()


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


def test_the_criterion_of_the_documentation_judges_a_trial_when_it_is_asked_for(examples: dict[str, dict[str, Any]]) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings(GateSettings):
        most_lost: float | None = None

    nobody_loses_much = examples["A criterion of the gate"]["nobody_loses_much"]
    scores = {"ana": np.array([0.5, 0.5]), "ben": np.array([0.9])}
    lower = {"ana": np.array([0.3, 0.3]), "ben": np.array([0.9])}
    criterion = nobody_loses_much(trial(lower, scores), Settings(most_lost=0.1), np.random.default_rng(0))
    assert not criterion.passed
    assert "ana changes most for the worse: -20.00" in criterion.explanation
    assert nobody_loses_much(trial(lower, scores), Settings(most_lost=0.3), np.random.default_rng(0)).passed
    assert nobody_loses_much(trial(lower, scores), Settings(), np.random.default_rng(0)) is None


def test_the_source_of_the_documentation_reads_a_file_and_names_what_it_cannot(examples: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("ana | lights on | done\nnonsense\n")
    problems = Problems()
    reading = examples["A data source"]["read_diary"](DataSettings(source="table", path=str(tmp_path / "notes.txt")), problems)
    assert reading.dataset.ids == ("ana",)
    assert (problems.count, problems.listed[0].location.line) == (1, 2)


@pytest.mark.parametrize("page", PAGES, ids=of_repository)
def test_every_documented_command_and_option_exists(page: Path) -> None:
    text = page.read_text()
    fenced, inline = FENCED.findall(text), re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    code = re.sub(r" #.*", "", "\n".join([*fenced, *inline]).replace("\\\n", " "))
    for line in re.findall(r"(?:^|[(&;] ?)clusterlora((?: [a-z-]+)+[^\n|&;)]*)", code, re.MULTILINE):
        command: click.Command = cli
        words = line.split()
        while words and isinstance(command, click.Group):
            word = words.pop(0)
            if word not in command.commands:
                break
            command = command.commands[word]
        assert command is not cli, f"{page.name}: clusterlora {line} is no command"
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        for word in words:
            assert not word.startswith("--") or word in options, f"{page.name}: clusterlora {line} has no option {word}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site give a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=of_repository)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", re.sub(r"`[^`\n]+`", "", FENCED.sub("", page.read_text()))):
        if "://" in target:
            continue
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}#{anchor}"


def test_the_site_has_every_page_in_its_navigation_and_no_other() -> None:
    listed = re.findall(r"(?:: |- )([\w/-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text().partition("exclude_docs")[0], re.MULTILINE)
    at_root = {"README.md": "index.md"} | {name: name.lower() for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")}
    assert sorted(listed) == sorted(at_root.get(of_repository(page), of_repository(page).removeprefix("docs/")) for page in PAGES)


@pytest.mark.parametrize("page", sorted(DOCS.glob("reference/*.md")), ids=of_repository)
def test_every_module_of_the_reference_exists(page: Path) -> None:
    for module in re.findall(r"^::: (.+)$", page.read_text(), re.MULTILINE):
        assert importlib.util.find_spec(module), f"{page.name} describes {module}"


def test_the_reference_describes_every_part_of_the_core_but_the_command_line() -> None:
    described = {
        module.split(".")[1]
        for page in DOCS.glob("reference/*.md")
        for module in re.findall(r"^::: (clusterlora\..+)$", page.read_text(), re.MULTILINE)
    }
    parts = {path.stem for path in (REPOSITORY / "clusterlora").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - described == {"__init__", "cli"}


@pytest.mark.parametrize(
    ("page", "catalog"),
    [
        ("methods", METHODS),
        ("methods", ALGORITHMS),
        ("methods", METRICS),
        ("methods", CRITERIA),
        ("data", SOURCES),
        ("engine", ADAPTER_KINDS),
    ],
)
def test_every_catalogued_name_is_documented(page: str, catalog: Catalog[Any]) -> None:
    text = (DOCS / f"{page}.md").read_text()
    assert [name for name in catalog if f"`{name}`" not in text] == []


def journeys() -> dict[str, list[str]]:
    """Return the steps of each of ARCHITECTURE's journeys."""
    section = (REPOSITORY / "ARCHITECTURE.md").read_text().partition("\n## Three journeys\n")[2].partition("\n## ")[0]
    section = section.replace("\n   ", " ")
    return {title: steps.strip().splitlines() for title, steps in re.findall(r"^\*\*(.+)\*\*\n\n((?:\d+\. .+\n)+)", section, re.MULTILINE)}


def test_there_are_three_journeys_of_at_most_ten_steps() -> None:
    assert [len(steps) for steps in journeys().values()] == [10, 10, 10]


@pytest.mark.parametrize("step", [f"{journey}: {step}" for journey, steps in journeys().items() for step in steps])
def test_every_function_of_the_journeys_is_where_they_say(step: str) -> None:
    """A step names a file, then what is defined in it; a class that it only mentions is defined somewhere in the core."""
    defined: set[str] = set()
    core = (file.read_text() for file in (REPOSITORY / "clusterlora").rglob("*.py"))
    somewhere = {name for text in core for name in re.findall(r"^class (\w+)", text, re.MULTILINE)}
    for name in re.findall(r"`([^`]+)`", step):
        if "/" in name:
            defined |= set(re.findall(r"^ *(?:def|class) (\w+)", (REPOSITORY / name).read_text(), re.MULTILINE))
        else:
            assert name in defined | somewhere, f"{name} is not defined there"
    assert defined


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "extending.md"], ids=of_repository)
def test_every_python_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`((?:[\w-]+/)+[a-z_]+\.py)`", page.read_text())
    assert [path for path in named if not any((root / path).exists() for root in (REPOSITORY, REPOSITORY / "clusterlora"))] == []


def test_readme_is_short_and_names_the_two_commands() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert {"make demo", "make test"} <= {line.partition("#")[0].strip() for line in lines}


def table_rows(markdown: str, first_column: str) -> dict[str, dict[str, str]]:
    """Return the first table whose first column has this title, cell by cell."""
    _, _, table = markdown.partition(f"\n| {first_column} |")
    header, _, *rows = (f"| {first_column} |{table}").partition("\n\n")[0].splitlines()
    columns, *cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in cells}


def test_the_table_of_readme_is_what_the_demo_printed() -> None:
    printed = table_rows((DOCS / "demo.md").read_text(), "method")
    expected = {
        method: {
            "method": method,
            "similarity": row["embedding_similarity"],
            "vs unified": row["vs_unified"] if row["ci_low"] == "-" else f"{row['vs_unified']} [{row['ci_low']}, {row['ci_high']}]",
            "p": row["p_holm"],
            "win / tie / loss": row["win / tie / loss"],
        }
        for method, row in printed.items()
    }
    assert table_rows(README, "method") == expected


def test_the_table_of_shakespeare_in_the_demo_is_that_of_the_results() -> None:
    _, _, of_results = (DOCS / "results.md").read_text().partition("\n## shakespeare\n")
    _, _, of_demo = (DOCS / "demo.md").read_text().partition("\n## Where clusters do not help\n")
    # The page of the results marks cut answers, and what is worse than the floor.
    of_run = {name.removesuffix(" †"): row for name, row in table_rows(of_results, "method").items()}
    shown = table_rows(of_demo, "method")
    assert shown == {
        method: {column: method if column == "method" else of_run[method][column].removesuffix(" (worse than floor)") for column in row}
        for method, row in shown.items()
    }
    assert shown.keys() == of_run.keys()


def test_what_readme_and_the_demo_say_of_the_mission_and_the_nulls_is_what_the_results_say() -> None:
    readme, demo, results = (
        " ".join(page.read_text().split()) for page in (REPOSITORY / "README.md", DOCS / "demo.md", DOCS / "results.md")
    )
    of_mission = table_rows((DOCS / "results.md").read_text().partition("\n## mission\n")[2], "method")
    rows = {name.split(" ")[0]: row for name, row in of_mission.items()}
    (champion,) = [row for name, row in of_mission.items() if "★" in name]
    gain = f"{champion['vs_unified']} points [{champion['ci_low']}, {champion['ci_high']}]"
    of_clusters, at_random = (rows[name]["vs_unified"] for name in ("cluster", "random_cluster"))
    assert f"({len(rows)} in all)" in readme
    assert f": {champion['embedding_similarity']}, {gain} on unified; clusters gain {of_clusters[1:]}, random" in readme
    assert f"({at_random})" in readme
    assert f"({gain}), clusters gain {of_clusters[1:]}," in demo
    told = re.search(r"\*\*Of (\d+) studies .*?, (\d+) claim .*? (\d+) shows? a method to beat unified", results)
    assert told
    assert told[2] == "0"
    assert (
        f"Of {told[1]} studies whose dialogues were exchanged at random, so that nothing is personal, {told[3]} shows a method to beat"
        in readme
    )


def test_what_readme_and_the_demo_say_of_the_likelihood_of_lines_is_what_the_results_say() -> None:
    readme, demo = (" ".join(page.read_text().split()) for page in (REPOSITORY / "README.md", DOCS / "demo.md"))
    _, _, of_study = (DOCS / "results.md").read_text().partition("\n## shakespeare-likelihood\n")
    rows = {name.split(" ")[0]: row for name, row in table_rows(of_study, "method").items()}
    looked_up, both, groups, alone = (
        {column: rows[name][column] for column in ("vs_unified", "ci_low", "ci_high")}
        for name in ("unified_retrieval", "hybrid_retrieval", "cluster", "per_persona")
    )
    interval = "{vs_unified} [{ci_low}, {ci_high}]".format
    best = f"({both['vs_unified']} nats per token [{both['ci_low']}, {both['ci_high']}]"
    assert f"hybrid_retrieval beats unified {best}" in demo
    assert f"equivalent to unified_retrieval, which gains as much ({looked_up['vs_unified']})" in demo
    assert f"cluster is worse ({interval(**groups)}" in demo
    assert f"is worse by {interval(**alone)}" in demo
    gains = [f"{abs(float(row['vs_unified'])):.2f}" for row in (looked_up, groups, alone)]
    assert "retrieved, help by {} nats per token; clusters do worse by {}, one adapter per person by {}.".format(*gains) in readme


def ratios(against: str, doing: str) -> tuple[str, str]:
    """Return the smallest and the largest measured ratio in float32, as README writes them."""
    rows = json.loads((DOCS / "benchmarks.json").read_text())["rows"]
    measured = [
        row["ratio_median"] for row in rows if row["baseline"] == against and row["name"].startswith(doing) and "float32" in row["name"]
    ]
    return f"{min(measured):.1f}", f"{max(measured):.1f}"


def test_the_speeds_in_readme_were_measured() -> None:
    slowest, fastest = ratios("transformers Trainer + PEFT", "training")
    assert f"{slowest} to {fastest} times the adapters per hour on two CPU cores in float32" in README
    slowest, fastest = ratios("PEFT one by one", "generation")
    assert f"{slowest} to {fastest} times the answers of PEFT one by one" in README
    assert re.search(r"^\| transformers Trainer \+ PEFT, .* \| H100 \| \d+ \| 35x ", (DOCS / "gpu.md").read_text(), re.MULTILINE)


def test_the_changelog_has_the_version_that_is_installed_as_its_last_release() -> None:
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    dates = [datetime.date.fromisoformat(day) for _, day in releases]
    assert dates == sorted(dates, reverse=True)
    assert releases[0][0] == clusterlora.__version__ == tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize(
    "file",
    ["deployments/pools/gpu-docker.json", "deployments/pools/gpu-kubernetes.json", "docker/compose.yaml", "docker/kubernetes-serve.yaml"],
)
def test_images_are_tagged_with_the_version_that_is_installed(file: str) -> None:
    assert set(re.findall(r"clusterlora-(?:worker|server):([\w.]+)", (REPOSITORY / file).read_text())) == {clusterlora.__version__}
