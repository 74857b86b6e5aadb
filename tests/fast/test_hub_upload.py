"""The hub's real client against a server here that speaks its protocol: repository, files small and large, card, refusals."""

import base64
import hashlib
import json
import shutil
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
    server: Hub  # pyrefly: ignore[bad-override-mutable-attribute]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None: ...  # noqa: A002

    def _reply(self, body: object, status: int = 200, error: str = "") -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
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
        repository, _, tree = self.path.removeprefix("/api/models/").partition("/revision")[0].partition("/tree/")
        private = self.server.private.get(repository)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._reply({"error": "Invalid credentials in Authorization header"}, 401)
            return
        if private is None:
            self._reply({"error": "Repository not found"}, 404, error="RepoNotFound")
            return
        if tree:
            files = self.server.repositories[repository].items()
            self._reply([{"type": "file", "path": path, "size": len(content), "oid": "0" * 40} for path, content in files])
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
        elif line["key"] == "deletedFile":
            del files[value["path"]]


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
    write_card(
        folder, card="# demo\n\nAnswers everybody.", base="x", base_model="Qwen/Qwen2.5-0.5B-Instruct", licence="Apache-2.0", form="peft"
    )
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_repository_that_everybody_sees_is_refused_before_anything_is_uploaded(hub: Hub, exported: Path) -> None:
    hub.repositories["ana/demo"], hub.private["ana/demo"] = {}, False
    for refused in (lambda: check_access("ana/demo"), lambda: push(exported, "ana/demo", message="demo")):
        with pytest.raises(BadSettings, match=r"everybody can see ana/demo, .* or add --public"):
            refused()
    assert (hub.repositories["ana/demo"], hub.objects) == ({}, {})
    check_access("ana/demo", public=True)
    assert not push(exported, "ana/demo", public=True, message="demo").private
    check_access("ana/to-come")
    assert "ana/to-come" not in hub.repositories


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_an_earlier_push_left_goes_and_what_is_nobodys_export_stays(hub: Hub, exported: Path) -> None:
    push(exported, "ana/demo", message="everybody")
    hub.repositories["ana/demo"] |= dict.fromkeys(
        (".gitattributes", "LICENSE", "pictures/one.png", "base/config.json", "ann.Modelfile"), b"x"
    )
    shutil.move(exported / "adapters" / "unified-1234", exported / "adapters" / "ann-5678")
    push(exported, "ana/demo", message="one person")
    assert set(hub.repositories["ana/demo"]) == {
        ".gitattributes", "LICENSE", "pictures/one.png", "README.md", "routes.json", "adapters/ann-5678/adapter_model.safetensors"
    }  # fmt: skip


def test_the_path_of_a_local_base_is_not_published(tmp_path: Path) -> None:
    card = "- **Base**: `/home/ana/secret/small`, revision `12`"
    write_card(tmp_path, card=card, base="/home/ana/secret/small", base_model="base", licence="mit", form="peft")
    assert (tmp_path / "README.md").read_text().endswith("- **Base**: `small`, revision `12`")


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
    for begun in (lambda: check_access("ana/demo"), lambda: push(exported, "ana/demo", message="demo")):
        with pytest.raises(ServiceDown, match=r"does not answer .*connect to the network") as refusal:
            begun()
        assert "\n" not in str(refusal.value)


def test_being_offline_on_purpose_is_said(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ServiceDown, match="unset HF_HUB_OFFLINE"):
        push(exported, "ana/demo", message="demo")
