"""Shards: many adapters in a file, each given back byte for byte, and none lost with another."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from clusterlora.adapters import shards
from clusterlora.adapters.held import HeldAdapters
from clusterlora.adapters.shards import in_shards, open_shard, write_shard
from clusterlora.adapters.weights import adapter_files, weights_sha256
from clusterlora.errors import BadData
from clusterlora.ports.adapter_store import AdapterFiles
from clusterlora.stores import files as files_store
from clusterlora.stores.files import FileAdapterStore


def peft_folder(folder: Path, *, seed: int, rank: int = 2, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        f"base_model.model.{layer}.lora_{part}.weight": torch.randn(shape, generator=draw).to(dtype)
        for layer in ("b", "a")
        for part, shape in (("A", (rank, 5)), ("B", (3, rank)))
    }
    # Another type, so that rows differ in alignment.
    tensors["steps"] = torch.tensor([seed], dtype=torch.int64)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "name": "Bär"}))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {f"key{n}": peft_folder(tmp_path / "trained" / f"key{n}", seed=n) for n in range(5)}


def files_of(folder: Path) -> AdapterFiles:
    files = adapter_files(folder)
    assert files is not None
    return files


def shard_files(store_root: Path) -> list[Path]:
    return sorted((store_root / ".shards").glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_in_a_shard_is_given_back_byte_for_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    folders = {f"key{n}": peft_folder(tmp_path / f"key{n}", seed=n, dtype=dtype) for n in range(3)}
    file = tmp_path / "shard.safetensors"
    write_shard(file, {key: files_of(folder) for key, folder in folders.items()})
    shard = open_shard(file)
    for key, folder in folders.items():
        assert shard.read(key) == files_of(folder)
        assert shard.read(key).sha256 == weights_sha256(folder)
    assert shard.read_all() == {key: files_of(folder) for key, folder in folders.items()}
    with pytest.raises(KeyError):
        shard.read("another")


def test_a_shard_is_safetensors_with_a_row_per_adapter(tmp_path: Path, folders: dict[str, Path]) -> None:
    write_shard(tmp_path / "shard.safetensors", {key: files_of(folder) for key, folder in folders.items()})
    with safe_open(tmp_path / "shard.safetensors", framework="pt") as opened:
        stacked = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (safe_open is not iterable)
    for row, folder in enumerate(folders.values()):
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as own:
            assert {name: tensor[row].tolist() for name, tensor in stacked.items()} == {
                name: own.get_tensor(name).tolist()
                for name in own.keys()  # noqa: SIM118
            }


def test_adapters_of_other_forms_are_in_other_shards_and_no_shard_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"key{n}": files_of(peft_folder(tmp_path / f"{n}", seed=n, rank=2 + n % 2)) for n in range(10)}

    def groups() -> list[set[str]]:
        return sorted((set(group) for group in in_shards(files)), key=sorted)

    even, odd = ({f"key{n}" for n in range(10) if n % 2 == rest} for rest in (0, 1))
    assert groups() == [even, odd]
    monkeypatch.setattr(shards, "MOST_ADAPTERS", 3)
    assert [len(group) for group in groups()] == [3, 3, 2, 2]
    assert set.union(*groups()) == files.keys()
    monkeypatch.setattr(shards, "MOST_BYTES", 2 * len(files["key0"].weights))
    assert max(len(group) for group in groups()) == 2


def test_a_store_holds_many_adapters_in_one_file_and_splits_off_what_is_asked_for(tmp_path: Path, folders: dict[str, Path]) -> None:
    root = tmp_path / "store"
    store = FileAdapterStore(root)
    ((file, keys),) = store.save_together(folders).items()
    assert shard_files(root) == [file]
    assert keys == tuple(folders)
    assert [entry.name for entry in root.iterdir() if not entry.name.startswith(".")] == []
    for reader in (store, FileAdapterStore(root)):
        assert reader.local_keys() == tuple(folders)
        assert all(reader.holds(key) and reader.shard(key) == file for key in folders)
        assert {key: reader.sha256(key) for key in folders} == {key: weights_sha256(folder) for key, folder in folders.items()}
    split = store.path("key3")
    assert split is not None
    assert files_of(split) == files_of(folders["key3"])
    (split / "adapter_model.safetensors").write_bytes(b"damaged")
    assert store.path("key3") == split
    assert files_of(split) == files_of(folders["key3"]), "the shard counts, not what was made of it"


def test_the_first_copy_of_a_key_stays_and_is_uploaded_with_nobody_else(tmp_path: Path, folders: dict[str, Path]) -> None:
    root = tmp_path / "store"
    store = FileAdapterStore(root)
    store.save_together({key: folders[key] for key in ("key0", "key1")})
    asked = {"key1": folders["key2"], "key3": folders["key3"]}
    shards_of = store.save_together(asked)
    assert sorted(key for keys in shards_of.values() for key in keys) == ["key1", "key3"]
    assert all(set(open_shard(file).keys) == set(keys) for file, keys in shards_of.items())
    assert store.save_together(asked) == shards_of, "what is by itself stays where it is"
    for reader in (store, FileAdapterStore(root)):
        assert {key: reader.from_shard(key) for key in ("key0", "key1")} == {key: files_of(folders[key]) for key in ("key0", "key1")}
    assert sorted(key for file in shard_files(root) for key in open_shard(file).keys) == ["key0", "key1", "key3"]


def test_what_holds_more_than_an_adapter_is_no_row(tmp_path: Path, folders: dict[str, Path]) -> None:
    (folders["key1"] / "extra.json").write_text("{}")
    store = FileAdapterStore(tmp_path / "store")
    with pytest.raises(BadData, match="holds more than an adapter"):
        store.save_together(folders)
    assert shard_files(tmp_path / "store") == []


def test_what_is_dropped_leaves_its_shard_and_the_others_stay(tmp_path: Path, folders: dict[str, Path]) -> None:
    root = tmp_path / "store"
    store, beside = FileAdapterStore(root), FileAdapterStore(root)
    store.save_together(folders)
    assert beside.holds("key4")
    secret = (folders["key1"] / "adapter_model.safetensors").read_bytes()[-40:]
    assert store.path("key1") is not None
    store.drop(["key1", "key2", "unknown"])
    store.delete("key3")
    for reader in (store, beside):
        assert reader.from_shard("key4") == files_of(folders["key4"]), "another process finds the file that took the place"
        assert reader.local_keys() == ("key0", "key4")
    assert not any(secret in file.read_bytes() for file in root.rglob("*") if file.is_file()), "nothing of it is left on the disk"
    store.drop(["key0", "key4"])
    assert shard_files(root) == []


def test_a_person_whose_adapter_two_processes_stored_leaves_both_shards(tmp_path: Path, folders: dict[str, Path]) -> None:
    root = tmp_path / "store"
    one, other = FileAdapterStore(root), FileAdapterStore(root)
    assert not one.holds("key0")
    assert not other.holds("key0")
    one.save_together({key: folders[key] for key in ("key0", "key1")})
    # The other process looked before.
    write_shard(root / ".shards" / "later.safetensors", {key: files_of(folders[key]) for key in ("key0", "key2")})
    other.delete("key0")
    for reader in (one, other, FileAdapterStore(root)):
        assert reader.local_keys() == ("key1", "key2")


def test_a_shard_that_is_replaced_between_listing_and_opening_is_found(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FileAdapterStore(tmp_path / "store")
    other.save_together(folders)
    leaving = ["key0"]

    def replaced_first(file: Path) -> shards.Shard:
        while leaving:
            other.drop([leaving.pop()])
        return open_shard(file)

    late = FileAdapterStore(tmp_path / "store")
    monkeypatch.setattr(files_store, "open_shard", replaced_first)
    assert late.from_shard("key1") == files_of(folders["key1"])
    assert not late.holds("key0")


def test_a_damaged_row_is_quarantined_alone(tmp_path: Path, folders: dict[str, Path]) -> None:
    store = FileAdapterStore(tmp_path / "store")
    (file,) = store.save_together(folders)
    content = bytearray(file.read_bytes())
    at = bytes(content).index(files_of(folders["key2"]).weights[-16:])
    content[at] ^= 1
    file.write_bytes(bytes(content))
    assert store.sha256("key2") != weights_sha256(folders["key2"])
    quarantined = store.quarantine("key2")
    assert weights_sha256(quarantined) != weights_sha256(folders["key2"])
    assert not store.holds("key2")
    assert all(store.sha256(key) == weights_sha256(folder) for key, folder in folders.items() if key != "key2")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.4, 0.999], ids=["empty", "a few bytes", "less than half", "all but a little"])
@pytest.mark.parametrize("opened_before", [True, False])
def test_a_shard_that_is_cut_costs_its_own_adapters_alone(
    tmp_path: Path, folders: dict[str, Path], share: float, opened_before: bool
) -> None:
    root = tmp_path / "store"
    writer = FileAdapterStore(root)
    (cut,) = writer.save_together({key: folders[key] for key in ("key0", "key1", "key2")})
    writer.save_together({key: folders[key] for key in ("key3", "key4")})
    store = writer if opened_before else FileAdapterStore(root)
    if opened_before:
        assert store.from_shard("key0") == files_of(folders["key0"])
    os.truncate(cut, int(share * cut.stat().st_size))
    found = {key: store.from_shard(key) for key in folders}
    rows = {key for key, files in found.items() if files is not None and files.sha256 == weights_sha256(folders[key])}
    assert rows >= {"key3", "key4"}
    # What can still be read of a file that was opened before it was cut is what it was.
    assert all(found[key] is None for key in folders.keys() - rows)
    assert store.path("key2") is None
    assert not cut.exists(), "it is in quarantine"
    assert len(store.quarantined()) == 1


def test_a_shard_that_is_no_shard_is_quarantined(tmp_path: Path, folders: dict[str, Path]) -> None:
    root = tmp_path / "store"
    FileAdapterStore(root).save_together(folders)
    (root / ".shards" / "foreign.safetensors").write_bytes((folders["key0"] / "adapter_model.safetensors").read_bytes())
    store = FileAdapterStore(root)
    assert store.local_keys() == tuple(folders)
    assert len(store.quarantined()) == 1


def with_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a shard, not what follows it."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def keys_are(*keys: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["__metadata__"].update({"clusterlora.keys": json.dumps(keys)})


def moved(by: float, *, end: float | None = None) -> Callable[[dict[str, Any]], object]:
    def move(header: dict[str, Any]) -> None:
        offsets = header["steps"]["data_offsets"]
        header["steps"]["data_offsets"] = [offsets[0] + by, offsets[1] + (by if end is None else end)]

    return move


def backwards(header: dict[str, Any]) -> None:
    own = json.loads(header["__metadata__"]["clusterlora.header"])
    for entry in (own["steps"], header["steps"]):
        entry["data_offsets"].reverse()
    header["__metadata__"]["clusterlora.header"] = json.dumps(own)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(keys_are("key0", "key1", "../x", "key3", "key4"), id="a path as key"),
        pytest.param(keys_are("key0", "key1", "/tmp/x", "key3", "key4"), id="an absolute path as key"),
        pytest.param(keys_are("key0", "key1", "key1", "key3", "key4"), id="a key twice"),
        pytest.param(keys_are("key0", "key1", 2, "key3", "key4"), id="a number as key"),
        pytest.param(keys_are("key0", "key1", ["key2"], "key3", "key4"), id="a list as key"),
        pytest.param(keys_are("key0"), id="too few keys"),
        pytest.param(keys_are(*map(str, range(100_000))), id="too many keys"),
        pytest.param(moved(-100_000), id="before the file"),
        pytest.param(moved(100_000), id="after the file"),
        pytest.param(moved(0.5), id="half a byte on"),
        pytest.param(backwards, id="ends before it begins"),
        pytest.param(lambda header: header["__metadata__"].update({"clusterlora.header": "[" * 100_000}), id="a deep header"),
        pytest.param(lambda header: header["__metadata__"].clear(), id="no metadata"),
        pytest.param(lambda header: header.pop("steps"), id="no such tensor"),
    ],
)
def test_a_hostile_shard_is_quarantined_whoever_asks_for_what(
    tmp_path: Path, folders: dict[str, Path], change: Callable[[dict[str, Any]], object]
) -> None:
    root = tmp_path / "store"
    FileAdapterStore(root).save_together(folders)
    hostile = root / ".shards" / "0-hostile.safetensors"
    write_shard(hostile, {key: files_of(folder) for key, folder in folders.items()})
    with_header(hostile, change)
    with pytest.raises(BadData, match="is no shard of adapters, or is damaged"):
        open_shard(hostile)
    store = FileAdapterStore(root)
    assert store.local_keys() == tuple(folders)
    assert {key: store.sha256(key) for key in folders} == {key: weights_sha256(folder) for key, folder in folders.items()}
    assert not hostile.exists()


def test_a_shard_without_adapters_is_none(tmp_path: Path, folders: dict[str, Path]) -> None:
    file = tmp_path / "shard.safetensors"
    write_shard(file, {"key0": files_of(folders["key0"])})

    def empty(header: dict[str, Any]) -> None:
        keys_are()(header)
        for name in header.keys() - {"__metadata__"}:
            header[name]["shape"][0] = 0
            header[name]["data_offsets"] = [0, 0]

    with_header(file, empty)
    with pytest.raises(BadData, match="no adapter, or two under one key"):
        open_shard(file)


def test_an_adapter_of_a_shard_elsewhere_brings_the_others_of_the_shard(tmp_path: Path, folders: dict[str, Path]) -> None:
    asked: list[str] = []

    def fetch(key: str, folder: Path) -> bool:
        asked.append(key)
        write_shard(folder / "any.safetensors", {name: files_of(source) for name, source in folders.items()})
        return True

    store = FileAdapterStore(tmp_path / "store", fetch)
    assert store.from_shard("key1") is None
    assert store.bring("key1")
    assert all(store.bring(key) for key in folders)
    assert asked == ["key1"]
    assert store.from_shard("key4") == files_of(folders["key4"])


def test_what_is_fetched_takes_the_place_of_every_damaged_row_of_its_shard(tmp_path: Path, folders: dict[str, Path]) -> None:
    asked: list[str] = []

    def fetch(key: str, folder: Path) -> bool:
        asked.append(key)
        write_shard(folder / "any.safetensors", {name: files_of(source) for name, source in folders.items()})
        return True

    root = tmp_path / "store"
    store = FileAdapterStore(root, fetch)
    store.save_together({"mine": peft_folder(tmp_path / "mine", seed=9), **folders})
    (file,) = shard_files(root)
    content = bytearray(file.read_bytes())
    content[-4 * len(folders) * 30 :] = bytes(4 * len(folders) * 30)
    file.write_bytes(bytes(content))
    damaged = [key for key, folder in folders.items() if store.sha256(key) != weights_sha256(folder)]
    assert len(damaged) == len(folders)
    for key, folder in folders.items():
        if store.sha256(key) != weights_sha256(folder):
            store.quarantine(key)
            assert store.bring(key)
    assert asked == ["key0"]
    assert {key: store.sha256(key) for key in folders} == {key: weights_sha256(folder) for key, folder in folders.items()}
    assert sorted(key for file in shard_files(root) for key in open_shard(file).keys) == sorted([*folders, "mine"])


def held(folders: dict[str, Path], tmp_path: Path, in_shard: Sequence[str]) -> HeldAdapters:
    write_shard(tmp_path / "some.safetensors", {key: files_of(folders[key]) for key in in_shard})
    return HeldAdapters(
        {key: folder for key, folder in folders.items() if key not in in_shard}, dict.fromkeys(in_shard, tmp_path / "some.safetensors")
    )


def test_what_is_written_for_a_model_is_read_from_it(tmp_path: Path, folders: dict[str, Path]) -> None:
    some = held({key: folder for key, folder in folders.items() if key != "key4"}, tmp_path, ("key1", "key2"))
    some.write(tmp_path / "model")
    assert sorted(entry.name for entry in (tmp_path / "model").iterdir()) == ["key0", "key3", "shard-00001.safetensors"]
    read = HeldAdapters.of_model(tmp_path / "model")
    assert read.keys == some.keys == {"key0", "key1", "key2", "key3"}
    assert all(read.sha256(key) == weights_sha256(folders[key]) for key in read.keys)
    assert files_of(read.folder("key1")) == files_of(folders["key1"])
    with pytest.raises(BadData, match="key4 is not among"):
        read.folder("key4")


def test_a_model_holds_of_a_shard_what_it_answers_with(tmp_path: Path, folders: dict[str, Path]) -> None:
    write_shard(tmp_path / "some.safetensors", {key: files_of(folder) for key, folder in folders.items()})
    HeldAdapters(shards={"key1": tmp_path / "some.safetensors"}).write(tmp_path / "model")
    assert open_shard(tmp_path / "model" / "shard-00001.safetensors").keys == ("key1",)


def test_files_that_are_removed_under_a_model_are_told(tmp_path: Path, folders: dict[str, Path]) -> None:
    some = held(folders, tmp_path, ("key1",))
    (tmp_path / "some.safetensors").unlink()
    with pytest.raises(BadData, match="removed meanwhile; load the model again"):
        some.sha256("key1")
