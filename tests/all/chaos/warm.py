"""Imports that a study needs; preloaded by the fork server of direct.py."""

import mlflow.pyfunc  # noqa: F401
import psycopg  # noqa: F401
import sentence_transformers  # noqa: F401
import torch
import transformers  # noqa: F401

from clusterlora.engine import training  # noqa: F401
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.settings import ModelSettings, PreparedModel
from clusterlora.stores import mlflow_tracker, sql  # noqa: F401
from tests.all.chaos import direct  # noqa: F401

# A thread would not survive the fork.
torch.set_num_threads(1)
base_model(PreparedModel())
embedder(ModelSettings())
