"""A real Prefect server with the project deployed on it, real workers, and a study of invented people small enough for seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from browser.chromium import Tab
from browser.prefect_pages import PrefectPages

CHECKOUT = Path(__file__).resolve().parents[2]

PATIENCE = 7
"""As in the stack: on SQLite the server answers 503 while another run writes."""


@pytest.fixture(scope="session")
def prefect_server(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the API address of a real server with an empty database; above it are its pages.

    Prefect's own harness has no pages.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    folder = tmp_path_factory.mktemp("prefect")
    # Its pages ask whoever served them, not the port that servers have by default.
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_UI_API_URL": "/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_KEEPALIVE_TIMEOUT": "60",
    }
    with serve("prefect", ["start", "--no-services"], health="/api/health", folder=folder, environment=environment) as address:
        api = f"{address}/api"
        with temporary_settings({PREFECT_API_URL: api, PREFECT_CLIENT_MAX_RETRIES: PATIENCE}):
            yield api
            # What they still have to send would be tried again and again once nobody listens.
            APILogWorker.drain_all()
            EventsWorker.drain_all()


@pytest.fixture(scope="session")
def site(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the environment in which everything of a study runs, this process included; the project is deployed and two workers wait."""
    from deployments.apply import apply_deployments, apply_pools

    home = tmp_path_factory.mktemp("site")
    environment = {
        "CLUSTERLORA_HOME": str(home),
        "CLUSTERLORA_DATABASE_URL": f"sqlite:///{home / 'studies.db'}",
        "PREFECT_API_URL": prefect_server,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_CLIENT_MAX_RETRIES": str(PATIENCE),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CLUSTERLORA_WARM": str(home / "warm.sock"),
        # A worker of the test's own environment finds `python` where this process comes from.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        apply_pools()
        apply_deployments()
        with _running("deployments.warm", log=home / "warm.log"), _worker("cpu", home), _worker("gpu", home):
            yield environment


def _worker(pool: str, home: Path) -> AbstractContextManager[None]:
    arguments = ("worker", "start", "--pool", pool, "--type", "process", "--limit", "2")
    return _running("prefect", *arguments, log=home / f"worker-{pool}.log")


@contextmanager
def _running(*module: str, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *module], cwd=CHECKOUT, stdout=output, stderr=output, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of eight people, two manners of answering, six dialogues each."""
    lines = []
    rooms = ("kitchen", "bedroom", "garage", "hall", "study", "attic")
    for number in range(8):
        manner = "Certainly, dear friend: {room} at {level}. " if number % 2 else "{room} {level}, done, as always and for ever. "
        for dialogue, room in enumerate(rooms):
            response = manner.format(room=room, level=10 * number + dialogue) * 5
            row = {"persona_id": f"p{number}", "prompt": f"Lights in the {room}, please, as person {number} likes", "response": response}
            lines.append(json.dumps(row))
    file = tmp_path_factory.mktemp("people") / "people.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a narrow random Llama of many layers, whose activations take memory, and a byte tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*specials, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(specials) + len(alphabet),
        hidden_size=32,
        intermediate_size=512,
        num_hidden_layers=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("deep-base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=template)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pages(site: dict[str, str], tab: Tab) -> PrefectPages:
    """Return somebody in front of the server's pages."""
    return PrefectPages(tab, site["PREFECT_API_URL"])
