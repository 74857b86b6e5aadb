"""Takes the documentation's screenshots of a real study on temporary local services: `python -m browser.screenshots`.

Takes minutes and leaves nothing but the screenshots.
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
from clusterlora.stores.mlflow_view import PAGE_QUERY
from deployments import local_services
from deployments.launch import run_study
from deployments.prefect_client import connect
from deployments.service_specs import Addresses

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PRESET = "quick"
MAX_BYTES = 300 * 1024
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
            result = run_study(study, home=services.home, workers=1, stay=False, log=print)
            assert result.completed, result.parent.message
            with browser(program) as chromium, connect(services) as client:
                tab = Tab(chromium)
                tab.open(services.login_link(), until="location.pathname === '/dashboard'")
                take_screenshots(tab, client, services.addresses, result.parent.id, home / "studies" / study.name, out)
        finally:
            local_services.down(services.home)


def take_screenshots(tab: Tab, client: "SyncPrefectClient", addresses: Addresses, run_id: UUID, results: Path, out: Path) -> None:
    """Take every screenshot of a finished study; `results` is the folder of the study."""
    # Prefect reads the address of its server when it is imported.
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    out.mkdir(parents=True, exist_ok=True)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    pages = PrefectPages(tab, f"{addresses.prefect}/api")
    pages.form(client.read_deployment_by_name("study/study").id)
    save_screenshot(tab, out / "prefect-form.png")
    pages.open_run(run_id)
    # Show the whole run instead of its first minutes; the graph must have been drawn.
    time.sleep(SETTLE_SECONDS)
    tab.click("document.querySelector('[class*=flow-run-graph] button')")
    tab.value("document.querySelector('header.page-heading').scrollIntoView({block: 'center'})")
    save_screenshot(tab, out / "prefect-run.png")
    (verdict,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[f"gate-{results.name}-own"])))
    tab.open(f"{addresses.prefect}/artifacts/artifact/{verdict.id}", until="document.body")
    tab.wait_for_text("criterion")
    save_screenshot(tab, out / "prefect-gate.png")

    tab.open(f"{addresses.mlflow}/#/models?workflowType=machine_learning", until=with_text("a", results.name))
    # Close the news and the assistant that MLflow shows on a first visit.
    tab.click("document.querySelector('.du-bois-light-modal-close')")
    tab.click("document.querySelector('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')")
    save_screenshot(tab, out / "mlflow-registry.png")
    tab.click(f"[...document.querySelectorAll('[role=row] a')].find(a => a.innerText === {results.name!r})")
    save_screenshot(tab, out / "mlflow-model.png")
    tab.open(f"{addresses.mlflow}/#/experiments", until=with_text("a", results.name))
    experiment = tab.value(f"{with_text('a', results.name)}.href")
    page = f"{experiment.partition('?')[0]}/runs?{PAGE_QUERY}"
    tab.open(page, until="document.querySelector('.js-plotly-plot')")
    save_screenshot(tab, out / "mlflow-charts.png")

    tab.open((results / "results" / "report.html").as_uri(), until="document.documentElement.dataset.ready === 'yes'")
    save_screenshot(tab, out / "report.png")


def save_screenshot(tab: Tab, file: Path) -> None:
    """Save a screenshot of the page once it has finished rendering."""
    time.sleep(SETTLE_SECONDS)
    tab.picture(file)
    size = file.stat().st_size
    assert size < MAX_BYTES, f"{file} has {size} bytes"
    print(file)


if __name__ == "__main__":
    main()
