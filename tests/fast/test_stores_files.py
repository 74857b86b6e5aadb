"""The adapter folder store: complete or invisible, never a pickle, never outside its root."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clusterlora.adapters.weights import weights_sha256
from clusterlora.errors import BadData
from clusterlora.stores.files import FileAdapterStore

KEY = "0123456789abcdef"
HEADER = (2).to_bytes(8, "little") + b"{}"
"""What a file of safetensors without a tensor begins with."""


def peft_folder(folder: Path, weights: bytes = HEADER + b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("a model card")
    return folder


def visible(root: Path) -> list[str]:
    return [p.name for p in root.iterdir() if not p.name.startswith(".")]


def test_a_saved_adapter_is_found_under_its_key(tmp_path: Path) -> None:
    store = FileAdapterStore(tmp_path / "store")
    assert store.path(KEY) is None
    saved = store.save(KEY, peft_folder(tmp_path / "offered"))
    assert store.path(KEY) == saved
    assert sorted(p.name for p in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_first_copy_of_a_key_stays(tmp_path: Path) -> None:
    store = FileAdapterStore(tmp_path / "store")
    store.save(KEY, peft_folder(tmp_path / "first", HEADER + b"first"))
    saved = store.save(KEY, peft_folder(tmp_path / "second", HEADER + b"second"))
    assert (saved / "adapter_model.safetensors").read_bytes() == HEADER + b"first"


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "state.pkl", "model.pth", "adapter.gguf", "run.py"])
def test_a_folder_with_anything_but_safetensors_and_json_is_refused(tmp_path: Path, name: str) -> None:
    offered = peft_folder(tmp_path / "offered")
    (offered / name).write_bytes(b"\x80\x04")
    with pytest.raises(BadData, match=name):
        FileAdapterStore(tmp_path / "store").save(KEY, offered)
    assert visible(tmp_path / "store") == []


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    offered = peft_folder(tmp_path / "offered")
    (offered / "extra.json").symlink_to("/etc/hostname")
    with pytest.raises(BadData, match=r"extra\.json"):
        FileAdapterStore(tmp_path / "store").save(KEY, offered)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    offered = peft_folder(tmp_path / "offered")
    (offered / "adapter_model.safetensors").unlink()
    with pytest.raises(BadData, match=r"adapter_model\.safetensors missing"):
        FileAdapterStore(tmp_path / "store").save(KEY, offered)


@pytest.mark.parametrize("key", ["../escape", "a/b", "", ".scratch", "x" * 200])
def test_a_key_that_is_a_path_is_refused(tmp_path: Path, key: str) -> None:
    store = FileAdapterStore(tmp_path / "store")
    for use in (store.path, store.scratch, store.drop_scratch):
        with pytest.raises(BadData, match="content key"):
            use(key)


def test_an_adapter_that_lies_elsewhere_is_fetched_once(tmp_path: Path) -> None:
    elsewhere = FileAdapterStore(tmp_path / "elsewhere")
    elsewhere.save(KEY, peft_folder(tmp_path / "offered"))
    fetched: list[str] = []

    def fetch(key: str, folder: Path) -> bool:
        fetched.append(key)
        source = elsewhere.path(key)
        if source is not None:
            shutil.copytree(source, folder, dirs_exist_ok=True)
        return source is not None

    store = FileAdapterStore(tmp_path / "here", fetch)
    assert store.path("ffff") is None
    assert store.path(KEY) == tmp_path / "here" / KEY
    assert store.path(KEY) == tmp_path / "here" / KEY
    assert fetched == ["ffff", KEY]


def test_a_fetch_that_breaks_off_leaves_nothing_visible(tmp_path: Path) -> None:
    def fetch(key: str, folder: Path) -> bool:
        (folder / "adapter_config.json").write_text(key)
        raise ConnectionError("gone")

    store = FileAdapterStore(tmp_path / "store", fetch)
    with pytest.raises(ConnectionError):
        store.path(KEY)
    assert visible(tmp_path / "store") == []


def test_a_fetched_pickle_is_refused(tmp_path: Path) -> None:
    def fetch(key: str, folder: Path) -> bool:
        (folder / "adapter_model.bin").write_bytes(key.encode())
        return True

    with pytest.raises(BadData):
        FileAdapterStore(tmp_path / "store", fetch).path(KEY)
    assert visible(tmp_path / "store") == []


def cut_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Cut every file of a folder at every length in turn, and mend it again."""
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            yield file, length
        file.write_bytes(whole)


def tiny_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 1}')
    save_file({"a": torch.ones(2)}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.whole
def test_files_cut_at_any_length_are_never_taken_in(tmp_path: Path) -> None:
    offered, store = tiny_adapter(tmp_path / "offered"), FileAdapterStore(tmp_path / "store")
    for file, length in cut_files(offered):
        with pytest.raises(BadData, match=file.name):
            store.save(KEY, offered)
        assert not store.holds(KEY), f"{file.name} with {length} bytes"
    assert store.save(KEY, offered) == store.path(KEY)


def test_a_copy_that_was_cut_gives_way_to_a_whole_one_and_is_set_aside(tmp_path: Path) -> None:
    offered, store = tiny_adapter(tmp_path / "offered"), FileAdapterStore(tmp_path / "store")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        kept = store.save(KEY, offered)
        (kept / name).write_bytes(b"")
        assert (store.save(KEY, offered) / name).read_bytes() == (offered / name).read_bytes()
    assert len(list((tmp_path / "store" / ".quarantine").iterdir())) == 2


def test_a_digest_is_computed_again_when_other_bytes_of_the_same_length_and_time_lie_there(tmp_path: Path) -> None:
    folder = tiny_adapter(tmp_path / "adapter")
    before, file = weights_sha256(folder), folder / "adapter_model.safetensors"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    for write in (file.write_bytes, lambda other: (tmp_path / "other").write_bytes(other) and (tmp_path / "other").replace(file)):
        write(bytes(content))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert weights_sha256(folder) != before
        content[-1] ^= 1
        file.write_bytes(bytes(content))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert weights_sha256(folder) == before
        content[-1] ^= 1


def test_scratch_survives_a_new_store_and_is_no_adapter(tmp_path: Path) -> None:
    (FileAdapterStore(tmp_path).scratch(KEY) / "checkpoint.safetensors").write_bytes(b"half")
    store = FileAdapterStore(tmp_path)
    assert (store.scratch(KEY) / "checkpoint.safetensors").read_bytes() == b"half"
    assert store.path(KEY) is None
    store.drop_scratch(KEY)
    assert list(store.scratch(KEY).iterdir()) == []


def test_leftovers_of_anybody_are_deleted_and_adapters_stay(tmp_path: Path) -> None:
    store = FileAdapterStore(tmp_path / "store")
    kept = store.save(KEY, peft_folder(tmp_path / "offered"))
    for name in (".scratch", ".quarantine", ".incoming", ".split"):
        peft_folder(tmp_path / "store" / name / "ffff")
    store.delete_leftovers()
    assert not list((tmp_path / "store").glob(".*/ffff*"))
    assert store.path(KEY) == kept


def test_a_new_store_is_closed_to_other_users_whoever_opens_it_first(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        FileAdapterStore(tmp_path / "adapters")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "adapters").stat().st_mode) == 0o700
