"""A study of its own on the session's MLflow server for each test that asks."""

import pytest
from mlflow import MlflowClient

from clusterlora.stores.mlflow_tracker import MlflowTracker
from tests.fixtures.tracked import start


@pytest.fixture
def client(mlflow_server: str) -> MlflowClient:
    return MlflowClient(mlflow_server)


@pytest.fixture
def tracker(mlflow_server: str) -> MlflowTracker:
    return MlflowTracker(mlflow_server, patience_seconds=2)


@pytest.fixture
def study(request: pytest.FixtureRequest, tracker: MlflowTracker) -> str:
    """Return the name of a started study of this test's own."""
    name = f"study-{abs(hash(request.node.name))}"
    start(tracker, name)
    return name
