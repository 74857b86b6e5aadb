"""A real Prefect server with the project deployed on it, real workers, and a study of invented people small enough for seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

BASE_VOCABULARY = 40_000
"""Far more than the tokenizer uses: the logits of a micro-batch then decide how much memory a step needs."""


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Return the API address of a real server with an empty database."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield str(PREFECT_API_URL.value())


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
        "OMP_NUM_THREADS": "1",
        # A worker of the test's own environment finds `python` where this process comes from.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        apply_pools()
        apply_deployments()
        with _worker("cpu", home), _worker("gpu", home):
            yield environment


@contextmanager
def _worker(pool: str, home: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", "2"]
    with (home / f"worker-{pool}.log").open("wb") as output:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=output, stderr=output, start_new_session=True)
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
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random Llama whose vocabulary is wide, and a byte tokenizer."""
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
        vocab_size=BASE_VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("wide-base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=template)
    fast.save_pretrained(folder)
    return folder
