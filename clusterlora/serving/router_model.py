"""The registered model as MLflow loads it ("models from code"): MLflow runs this file, so a model contains no pickle.

Input rows: `persona_id`, `messages` ([{role, content}], the last one the user's), optionally `context` and `max_new_tokens`.
Output rows: `persona_id`, `text`, `answered_by`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class RouterModel(PythonModel):
    """A Router as an MLflow pyfunc."""

    # MLflow warns without pydantic type hints to check rows by; the model's signature and the router check them instead.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Load the base model and the adapters among the model's files."""
        # Imported here: MLflow also runs this file to register the model, which needs none of it.
        from clusterlora.serving.router import Router

        self._router = Router.load(Path(context.artifacts["routes"]), Path(context.artifacts["adapters"]))

    # MLflow makes a signature of a type, even of Any, and there is one already.
    def predict(self, context: PythonModelContext, model_input, params: Mapping[str, Any] | None = None) -> Any:  # noqa: ARG002  # pyrefly: ignore[implicit-any-parameter]
        """Return one answer per row of a DataFrame or list."""
        requests = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        return self._router.answer(requests)


set_model(RouterModel())
