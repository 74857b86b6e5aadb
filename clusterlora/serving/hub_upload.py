"""Put an exported model on the Hugging Face Hub, or any server that speaks its protocol, with its model card."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings, ServiceDown
from clusterlora.models.hub import HUB_ID
from clusterlora.models.loading import first_line
from clusterlora.serving.elsewhere import BASE_FOLDER

TAGS = ("clusterlora", "lora", "personalisation")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Where a model is: its page, the commit, and whether everybody can see it."""

    page: str
    commit: str
    private: bool


def write_card(folder: Path, *, card: str, base_model: str, licence: str, form: str) -> None:
    """Write README.md: the registered model's card under the metadata that the hub reads."""
    library = {"merged": "transformers", "gguf": "gguf"}.get(form, "peft")
    # A sentence is no licence that the hub knows.
    known = licence.lower() if " " not in licence.strip() else "other"
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation", f"license: {known}"]
    lines += [f"base_model: {base_model}"] if base_model != BASE_FOLDER else []
    lines += ["tags:", *(f"- {tag}" for tag in TAGS), "---", "", card]
    write_durably(folder / "README.md", "\n".join(lines).encode())


def check_access(repo_id: str) -> None:
    """Raise BadSettings for a name that is no repository's, and without a token: before anything is exported."""
    if not HUB_ID.fullmatch(repo_id) or "/" not in repo_id:
        raise BadSettings(f"{repo_id!r} is no repository; write OWNER/NAME")
    from huggingface_hub import get_token

    if get_token() is None:
        raise BadSettings(f"there is no token to write to {repo_id} with; set HF_TOKEN, or log in: hf auth login")


def push(folder: Path, repo_id: str, *, public: bool = False, message: str) -> Uploaded:
    """Upload a folder to a repository, created if it is not there; return where it is. HF_ENDPOINT names another server.

    Raises:
        BadSettings: there is no token that may write there.
        ServiceDown: the hub does not answer, or HF_HUB_OFFLINE is set.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repo_id, private=not public, exist_ok=True)
        commit: Any = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        private = bool(api.repo_info(repo_id).private)
    except HfHubHTTPError as problem:
        status = problem.response.status_code
        if status in (401, 403):
            raise BadSettings(
                f"{api.endpoint} does not let this token write to {repo_id}; set HF_TOKEN to one with write access"
            ) from problem
        raise ServiceDown(f"{api.endpoint} refused {repo_id} with status {status}: {first_line(problem)}; try again later") from problem
    except RuntimeError as problem:  # a large file
        raise ServiceDown(f"{api.endpoint} took {repo_id} in part ({first_line(problem)}); push it again") from problem
    except (OfflineModeIsEnabled, httpx2.TransportError, ConnectionError) as problem:
        fix = "unset HF_HUB_OFFLINE" if isinstance(problem, OfflineModeIsEnabled) else "connect to the network, or correct HF_ENDPOINT"
        raise ServiceDown(f"{api.endpoint} does not answer ({first_line(problem)}); {fix}") from problem
    return Uploaded(f"{api.endpoint}/{repo_id}", str(commit.oid), private)
