"""The hub's real client against a server here that speaks its protocol: repository, files small and large, card, refusals."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clusterlora.errors import BadSettings, ServiceDown
from clusterlora.serving.hub_upload import check_access, push, write_card

TOKEN = "hf_of_the_tests"
OWNER = "organi" + "zation"
"""The field's name in the hub's protocol."""


class Hub(ThreadingHTTPServer):
    """What the hub keeps: repositories with their files; large ones come through Git LFS."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None: ...  # noqa: A002

    def _reply(self, body: object, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._reply({})

    def do_GET(self) -> None:
        repository = self.path.removeprefix("/api/models/").partition("/revision")[0]
        private = self.server.private.get(repository)
        if private is None or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            # As the hub does: who may not see a repository is not told that it is there.
            self._reply({"error": "Repository not found"}, 401)
            return
        self._reply({"id": repository, "private": private, "sha": "c" * 40, "siblings": [], "tags": [], "downloads": 0, "likes": 0})

    def do_POST(self) -> None:
        body, path, hub = self._body(), self.path, self.server
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "/info/lfs/" not in path:
            self._reply({"error": "no"}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked[OWNER]}/{asked['name']}"
            hub.repositories.setdefault(name, {})
            hub.private.setdefault(name, bool(asked.get("private", asked.get("visibility") == "private")))
            self._reply({"url": f"{hub.address}/{name}"})
        elif path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "lfs" if p.endswith(".safetensors") else "regular", "shouldIgnore": False} for p in files]
            self._reply({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{**one, "actions": {"upload": {"href": f"{hub.address}/objects/{one['oid']}"}}} for one in objects]
            self._reply({"transfer": "basic", "objects": actions})
        elif "/commit/" in path:
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in body.splitlines():
                self._commit(hub.repositories[repository], json.loads(line))
            oid = "c" * 40
            self._reply({"commitUrl": f"{hub.address}/{repository}/commit/{oid}", "commitOid": oid, "hookOutput": "", "success": True})
        else:
            self._reply({"error": path}, 404)

    def _commit(self, files: dict[str, bytes], line: dict[str, Any]) -> None:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = self.server.objects[value["oid"]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    (folder / "adapters" / "unified-1234").mkdir(parents=True)
    (folder / "adapters" / "unified-1234" / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "routes.json").write_text("{}")
    write_card(folder, card="# demo\n\nAnswers everybody.", base_model="Qwen/Qwen2.5-0.5B-Instruct", licence="Apache-2.0", form="peft")
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # how the hub's client sends a file
def test_a_folder_is_put_into_a_private_repository_with_its_card(hub: Hub, exported: Path) -> None:
    uploaded = push(exported, "ana/demo", message="demo version 1")
    files = hub.repositories["ana/demo"]
    assert files["adapters/unified-1234/adapter_model.safetensors"] == b"weights" * 1000
    assert hashlib.sha256(b"weights" * 1000).hexdigest() in hub.objects
    card = files["README.md"].decode()
    assert card.startswith(
        "---\nlibrary_name: peft\npipeline_tag: text-generation\nlicense: apache-2.0\nbase_model: Qwen/Qwen2.5-0.5B-Instruct\n"
    )
    assert card.endswith("# demo\n\nAnswers everybody.")
    assert (uploaded.page, uploaded.commit, uploaded.private) == (f"{hub.address}/ana/demo", "c" * 40, True)
    assert not push(exported, "ana/open", public=True, message="demo version 1").private


def test_a_token_that_may_not_write_is_refused_in_one_line(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(BadSettings, match="does not let this token write to ana/demo; set HF_TOKEN") as refusal:
        push(exported, "ana/demo", message="demo")
    assert "\n" not in str(refusal.value)
    assert hub.repositories == {}


def test_without_token_network_or_a_name_nothing_is_begun(exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(BadSettings, match="no token to write to ana/demo"):
        check_access("ana/demo")
    with pytest.raises(BadSettings, match="no repository; write OWNER/NAME"):
        check_access("demo")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ServiceDown, match=r"does not answer .*connect to the network") as refusal:
        push(exported, "ana/demo", message="demo")
    assert "\n" not in str(refusal.value)


def test_being_offline_on_purpose_is_said(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ServiceDown, match="unset HF_HUB_OFFLINE"):
        push(exported, "ana/demo", message="demo")
