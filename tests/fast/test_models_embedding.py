"""Embedding models: only the published MiniLM is accepted, vectors have unit length, each distinct text is embedded once."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clusterlora.errors import ModelUnavailable
from clusterlora.models import embedding
from clusterlora.models.embedding import MINILM_SHA256, SentenceEmbedder, checked_minilm, load_embedder, minilm_folder
from clusterlora.ports.embedder import Embedder


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return load_embedder("minilm")


class LettersModel:
    """Embeds a text as the counts of two letters, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str], **_options: Any) -> np.ndarray:
        self.asked += texts
        return np.array([[text.count("a"), text.count("b")] for text in texts], dtype=np.float32)

    def get_embedding_dimension(self) -> int:
        return 2


def test_minilm_embeds_paraphrases_closer_than_unrelated_texts(minilm: Embedder) -> None:
    vectors = minilm.encode(["Turn the lights on, please.", "Please switch on the lamps.", "The stock market fell."])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.6
    assert abs(cosines[0, 2]) < 0.2


def test_minilm_is_identified_by_the_published_hash(minilm: Embedder) -> None:
    assert (minilm.name, minilm.revision) == ("minilm", MINILM_SHA256)


def test_an_embedding_does_not_depend_on_the_texts_beside_it(minilm: Embedder) -> None:
    text = "Set the AC to 21 degrees."
    alone = load_embedder("minilm").encode([text])[0]
    beside = minilm.encode([text, "A much longer text, " * 20, "Short."])[0]
    np.testing.assert_allclose(alone, beside, atol=1e-5)


def test_a_corrupted_copy_of_minilm_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(minilm_folder(), tmp_path / "model")
    assert checked_minilm(folder) == folder
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ModelUnavailable, match="not the published 53aa51172d14"):
        checked_minilm(folder)


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_each_different_text_is_embedded_once_and_rows_keep_their_order(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_AT_ONCE", at_once)
    model = LettersModel()
    embedder = SentenceEmbedder("letters", "1", model)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(embedder.encode(["a", "bb", "a"]), [[1, 0], [0, 2], [1, 0]])
    np.testing.assert_array_equal(embedder.encode(["bb", "ab"]), [[0, 2], [1, 1]])
    assert model.asked == ["a", "bb", "ab"]


def test_memory_is_bounded_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "CACHE_SIZE", 2)
    model = LettersModel()
    embedder = SentenceEmbedder("letters", "1", model)  # pyright: ignore[reportArgumentType]
    assert embedder.encode(["a", "aa", "aaa"]).shape == (3, 2)
    embedder.encode(["aaa", "aa"])
    assert model.asked == ["a", "aa", "aaa"]
    embedder.encode(["a"])
    assert model.asked == ["a", "aa", "aaa", "a"]


def test_no_texts_give_an_empty_array() -> None:
    assert SentenceEmbedder("letters", "1", LettersModel()).encode([]).shape == (0, 2)  # pyright: ignore[reportArgumentType]


def test_a_folder_is_an_embedding_model_unless_it_holds_a_pickle(tmp_path: Path) -> None:
    folder = shutil.copytree(minilm_folder(), tmp_path / "model")
    assert load_embedder(str(folder)).revision == MINILM_SHA256
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelUnavailable, match="is pickled"):
        load_embedder(str(folder))


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no \*\.safetensors"):
        load_embedder(str(tmp_path))


def test_an_unknown_name_names_the_alternative() -> None:
    with pytest.raises(ModelUnavailable, match="use minilm or a local folder"):
        load_embedder("./nowhere")
