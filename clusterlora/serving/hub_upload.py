"""Put an exported model on the Hugging Face Hub, or any server that speaks its protocol, with its model card."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings, ServiceDown
from clusterlora.models.hub import HUB_ID
from clusterlora.models.loading import first_line
from clusterlora.serving.elsewhere import BASE_FOLDER

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TAGS = ("clusterlora", "lora", "personalisation")

EXPORTED = (
    "adapters/*",
    "merged/*",
    "base/*",
    "*.Modelfile",
    "routes.json",
    "generation_config.json",
    "chat_template.jinja",
    "load.py",
    "serve.sh",
)
"""What an export may hold, as the hub's client matches names: of an earlier one, whatever the present one lacks is deleted."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Where a model is: its page, the commit, and whether everybody can see it."""

    page: str
    commit: str
    private: bool


def write_card(folder: Path, *, card: str, base: str, base_model: str, licence: str, form: str) -> None:
    """Write README.md: the registered model's card under the metadata that the hub reads.

    Args:
        base: the base of the study; of a folder only the last name is published.
        base_model: a hub id, or BASE_FOLDER.
    """
    if base_model == BASE_FOLDER:
        card = card.replace(base, Path(base).name)
    library = {"merged": "transformers", "gguf": "gguf"}.get(form, "peft")
    # A sentence is no licence that the hub knows.
    known = licence.lower() if " " not in licence.strip() else "other"
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation", f"license: {known}"]
    lines += [f"base_model: {base_model}"] if base_model != BASE_FOLDER else []
    lines += ["tags:", *(f"- {tag}" for tag in TAGS), "---", "", card]
    write_durably(folder / "README.md", "\n".join(lines).encode())


def check_access(repo_id: str, *, public: bool = False) -> None:
    """Ask the hub about a repository before anything is exported; one that is not there yet is fine.

    Raises:
        BadSettings: the name is no repository's, there is no token, or everybody can see the repository and `public` is not set.
        ServiceDown: the hub does not answer, or HF_HUB_OFFLINE is set.
    """
    if not HUB_ID.fullmatch(repo_id) or "/" not in repo_id:
        raise BadSettings(f"{repo_id!r} is no repository; write OWNER/NAME")
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise BadSettings(f"there is no token to write to {repo_id} with; set HF_TOKEN, or log in: hf auth login")
    with _hub(repo_id) as api:
        try:
            _refuse_public(api, repo_id, public=public)
        except RepositoryNotFoundError:
            return


def push(folder: Path, repo_id: str, *, public: bool = False, message: str) -> Uploaded:
    """Upload a folder to a repository, created if it is not there; return where it is. HF_ENDPOINT names another server.

    What an earlier push left and this folder lacks is deleted in the same commit; earlier commits keep it.

    Raises:
        BadSettings: there is no token that may write there, or everybody can see the repository and `public` is not set.
        ServiceDown: the hub does not answer, or HF_HUB_OFFLINE is set.
    """
    with _hub(repo_id) as api:
        # A repository that exists keeps its visibility.
        api.create_repo(repo_id, private=not public, exist_ok=True)
        private = _refuse_public(api, repo_id, public=public)
        commit: Any = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=list(EXPORTED))
        return Uploaded(f"{api.endpoint}/{repo_id}", str(commit.oid), private)


def _refuse_public(api: "HfApi", repo_id: str, *, public: bool) -> bool:
    """Return whether a repository is private; raise BadSettings where it is not, and `public` is not set."""
    private = bool(api.repo_info(repo_id).private)
    if not (private or public):
        raise BadSettings(
            f"everybody can see {repo_id}, and its routes.json would say which person has which adapter; make it private, name another "
            "repository, or add --public"
        )
    return private


@contextmanager
def _hub(repo_id: str) -> "Generator[HfApi]":
    """Yield the hub's client; what goes wrong with a repository is raised as BadSettings or ServiceDown, in one line."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        yield api
    except HfHubHTTPError as problem:
        status = problem.response.status_code
        if status in (401, 403):
            raise BadSettings(
                f"{api.endpoint} does not let this token write to {repo_id}; set HF_TOKEN to one with write access"
            ) from problem
        raise ServiceDown(f"{api.endpoint} refused {repo_id} with status {status}: {first_line(problem)}; try again later") from problem
    except (OfflineModeIsEnabled, httpx2.TransportError, ConnectionError) as problem:
        fix = "unset HF_HUB_OFFLINE" if isinstance(problem, OfflineModeIsEnabled) else "connect to the network, or correct HF_ENDPOINT"
        raise ServiceDown(f"{api.endpoint} does not answer ({first_line(problem)}); {fix}") from problem
    except RuntimeError as problem:  # a large file
        raise ServiceDown(f"{api.endpoint} took {repo_id} in part ({first_line(problem)}); push it again") from problem
