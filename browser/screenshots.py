"""Screenshots for the documentation, of a real study on temporary local services: `python -m browser.screenshots`. Takes minutes.

Leaves nothing but the screenshots.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import UUID

from browser.chromium import Tab, browser, find_browser, with_text
from browser.prefect_pages import PrefectPages
from clusterlora.config import resolve
from clusterlora.stores.mlflow_view import VIEW
from deployments import local_services
from deployments.launch import run_study
from deployments.prefect_client import connect
from deployments.service_specs import Addresses

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PRESET = "quick"
MOST_BYTES = 300 * 1024
SETTLE_SECONDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"), help="folder for the pictures")
    out: Path = parser.parse_args().out
    program = find_browser()
    if program is None:
        sys.exit("no browser is installed; apt-get install chromium")
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        home = Path(name)
        os.environ["CLUSTERLORA_HOME"] = str(home / "studies")
        os.environ["CLUSTERLORA_DATABASE_URL"] = f"sqlite:///{home / 'studies.db'}"
        services = local_services.up(home / "stack", workers=1, log=print)
        try:
            study = resolve(PRESET)
            ended = run_study(study, home=services.home, workers=1, stay=False, log=print)
            assert ended.completed, ended.parent.message
            with browser(program) as chromium, connect(services) as client:
                tab = Tab(chromium)
                tab.open(services.login_link(), until="location.pathname === '/dashboard'")
                photograph(tab, client, services.addresses, ended.parent.id, home / "studies" / study.name, out)
        finally:
            local_services.down(services.home)


def photograph(tab: Tab, client: "SyncPrefectClient", addresses: Addresses, run_id: UUID, results: Path, out: Path) -> None:
    """Take every screenshot of a finished study; `results` is its folder, named after it."""
    # Prefect reads the address of its server when it is imported.
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    out.mkdir(parents=True, exist_ok=True)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    pages = PrefectPages(tab, f"{addresses.prefect}/api")
    pages.form(client.read_deployment_by_name("study/study").id)
    keep(tab, out / "prefect-form.png")
    pages.open_run(run_id)
    # Show the whole run instead of its first minutes; the graph must have been drawn.
    time.sleep(SETTLE_SECONDS)
    tab.click("document.querySelector('[class*=flow-run-graph] button')")
    tab.value("document.querySelector('header.page-heading').scrollIntoView({block: 'center'})")
    keep(tab, out / "prefect-run.png")
    (verdict,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[f"gate-{results.name}-own"])))
    tab.open(f"{addresses.prefect}/artifacts/artifact/{verdict.id}", until="document.body")
    tab.says("criterion")
    keep(tab, out / "prefect-gate.png")

    tab.open(f"{addresses.mlflow}/#/models?workflowType=machine_learning", until=with_text("a", results.name))
    # Close the news and the assistant that MLflow shows on a first visit.
    tab.click("document.querySelector('.du-bois-light-modal-close')")
    tab.click("document.querySelector('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')")
    keep(tab, out / "mlflow-registry.png")
    tab.click(f"[...document.querySelectorAll('[role=row] a')].find(a => a.innerText === {results.name!r})")
    keep(tab, out / "mlflow-model.png")
    tab.open(f"{addresses.mlflow}/#/experiments", until=with_text("a", results.name))
    experiment = tab.value(f"{with_text('a', results.name)}.href")
    page = f"{experiment.partition('?')[0]}/runs?viewStateShareKey={VIEW}&compareRunsMode=CHART&workflowType=machine_learning"
    tab.open(page, until="document.querySelector('.js-plotly-plot')")
    keep(tab, out / "mlflow-charts.png")

    tab.open((results / "results" / "report.html").as_uri(), until="document.documentElement.dataset.ready === 'yes'")
    keep(tab, out / "report.png")


def keep(tab: Tab, file: Path) -> None:
    """Photograph the page once it has finished drawing."""
    time.sleep(SETTLE_SECONDS)
    tab.picture(file)
    size = file.stat().st_size
    assert size < MOST_BYTES, f"{file} has {size} bytes"
    print(file)


if __name__ == "__main__":
    main()
