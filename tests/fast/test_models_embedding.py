"""Embedding models: only the published MiniLM is accepted, vectors have unit length, each distinct text is embedded once."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clusterlora.errors import ModelUnavailable
from clusterlora.models import embedding
from clusterlora.models.embedding import MINILM_SHA256, SentenceEmbedder, checked_minilm, load_embedder, minilm_folder
from clusterlora.models.embedding_checks import checked_loading
from clusterlora.models.fit import embedding_findings
from clusterlora.ports.embedder import Embedder
from tests.fixtures.embedding_folders import write_embedding_folder


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
    embedder = SentenceEmbedder("letters", "1", model)  # pyrefly: ignore[bad-argument-type]
    np.testing.assert_array_equal(embedder.encode(["a", "bb", "a"]), [[1, 0], [0, 2], [1, 0]])
    np.testing.assert_array_equal(embedder.encode(["bb", "ab"]), [[0, 2], [1, 1]])
    assert model.asked == ["a", "bb", "ab"]


def test_memory_is_bounded_and_forgets_what_was_asked_for_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "CACHE_SIZE", 2)
    model = LettersModel()
    embedder = SentenceEmbedder("letters", "1", model)  # pyrefly: ignore[bad-argument-type]
    assert embedder.encode(["a", "aa", "aaa"]).shape == (3, 2)
    embedder.encode(["aaa", "aa"])
    assert model.asked == ["a", "aa", "aaa"]
    embedder.encode(["a"])
    assert model.asked == ["a", "aa", "aaa", "a"]


def test_references_that_every_method_is_compared_with_stay_in_memory_beside_new_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "CACHE_SIZE", 6)
    model = LettersModel()
    embedder = SentenceEmbedder("letters", "1", model)  # pyrefly: ignore[bad-argument-type]
    references = ["a", "aa", "aaa"]
    for method in range(5):
        embedder.encode([*references, "b" * (method + 1), "b" * (method + 1) + "a"])
    assert [model.asked.count(one) for one in references] == [1, 1, 1]


def test_no_texts_give_an_empty_array() -> None:
    assert SentenceEmbedder("letters", "1", LettersModel()).encode([]).shape == (0, 2)  # pyrefly: ignore[bad-argument-type]


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


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedding_folder(tmp_path_factory.mktemp("embedding") / "model")


def content(file: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(data)

    return change


def setting(file: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps({**settings, **changes}), encoding="utf-8")

    return change


def weights_times(factor: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = {name: value * np.float32(factor) for name, value in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def linked(file: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(folder / target)

    return change


def pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def renamed(rename: Callable[[str], str]) -> Callable[[Path], None]:
    """Store the weights under other names; those whose name is empty are left out."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(
            {new: weights[name] for name in weights if (new := rename(name))}, folder / "model.safetensors", metadata={"format": "pt"}
        )

    return change


def without(part: str) -> Callable[[Path], None]:
    return renamed(lambda name: "" if part in name else name)


def more_weights(**shapes: tuple[int, ...]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        more = {name.replace("__", "."): np.ones(shape, dtype=np.float32) for name, shape in shapes.items()}
        save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def as_integers(folder: Path) -> None:
    weights = {name: (100 * value).astype(np.int8) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def in_a_folder_of_its_own(folder: Path) -> None:
    (folder / "0_Transformer").mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        (folder / file).rename(folder / "0_Transformer" / file)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


def with_word(number: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer["model"]["vocab"]["zebra"] = number
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")

    return change


def special_token(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


@pytest.mark.parametrize(
    "layout",
    [
        without("pooler."),
        renamed(lambda name: f"bert.{name}"),
        renamed(lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")),
        more_weights(
            embeddings__position_ids=(1, 64), embeddings__token_type_ids=(1, 64), cls__predictions__bias=(12,), classifier__weight=(2, 8)
        ),
        in_a_folder_of_its_own,
        special_token,
    ],
)
def test_a_published_layout_gives_the_same_embeddings(whole_folder: Path, tmp_path: Path, layout: Callable[[Path], None]) -> None:
    folder = shutil.copytree(whole_folder, tmp_path / "model")
    layout(folder)
    texts = ["a text on", "a lamp"]
    np.testing.assert_array_equal(load_embedder(str(folder)).encode(texts), load_embedder(str(whole_folder)).encode(texts))


def test_a_special_token_that_has_no_embedding_is_read_as_it_is_written(whole_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole_folder, tmp_path / "model")
    special_token(folder)
    texts = ["a <image> on"]
    np.testing.assert_array_equal(load_embedder(str(folder)).encode(texts), load_embedder(str(whole_folder)).encode(texts))


def test_a_text_is_read_as_far_as_there_are_positions(whole_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole_folder, tmp_path / "model")
    setting("sentence_bert_config.json", max_seq_length=64)(folder)
    cut, longer, shorter = load_embedder(str(folder)).encode(["a lamp " * 31, "a lamp " * 100, "a lamp " * 30 + "text on"])
    np.testing.assert_allclose(cut, longer, atol=1e-6)
    assert not np.allclose(cut, shorter, atol=1e-4)


def test_positions_begin_after_the_padding_token_in_models_of_roberta_s_kind(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    folder = write_embedding_folder(tmp_path / "model")
    small: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    RobertaModel(RobertaConfig(vocab_size=12, pad_token_id=0, max_position_embeddings=40, **small)).save_pretrained(folder)
    setting("tokenizer_config.json", model_max_length=10**9)(folder)
    setting("sentence_bert_config.json", max_seq_length=40)(folder)
    with pytest.raises(ModelUnavailable, match="max_seq_length = 40, and the model has positions for 39 tokens; write 39 there"):
        load_embedder(str(folder))
    for lengths in ({"max_seq_length": 39}, {}):
        (folder / "sentence_bert_config.json").write_text(json.dumps(lengths), encoding="utf-8")
        assert load_embedder(str(folder)).encode(["a lamp " * 40]).shape == (1, 8)


def test_an_embedding_table_with_fewer_rows_than_tokens_is_refused(whole_folder: Path, tmp_path: Path) -> None:
    table = "sentence_transformers.sentence_transformer.modules.StaticEmbedding"
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": table}]), encoding="utf-8")
    shutil.copy(whole_folder / "tokenizer.json", tmp_path)
    save_file({"embedding.weight": np.ones((12, 4), dtype=np.float32)}, tmp_path / "model.safetensors")
    assert load_embedder(str(tmp_path)).encode(["a lamp"]).shape == (1, 4)
    save_file({"embedding.weight": np.ones((11, 4), dtype=np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnavailable, match="has 12 tokens, and the weights have rows for 11"):
        load_embedder(str(tmp_path))


@pytest.mark.parametrize("has_its_base", [True, False])
def test_a_folder_with_an_adapter_is_refused(has_its_base: bool, tmp_path: Path) -> None:
    from peft import LoraConfig
    from transformers import BertModel

    folder = write_embedding_folder(tmp_path / "model")
    base = str(folder.with_name("model-bert"))
    model = BertModel.from_pretrained(base)
    model.add_adapter(LoraConfig(r=2, target_modules=["query"], base_model_name_or_path=base))
    model.save_pretrained(folder)
    if not has_its_base:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"also holds an adapter \(adapter_config.json\), .+; merge it \(merge_and_unload\)"):
        load_embedder(str(folder))


def test_only_what_is_loaded_from_the_folder_is_checked(whole_folder: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    other = shutil.copytree(whole_folder, tmp_path / "other")
    without("encoder.")(other)
    with checked_loading(whole_folder) as loaded:
        model = BertModel.from_pretrained(whole_folder)
        BertModel.from_pretrained(other)
    BertModel.from_pretrained(whole_folder)
    assert [one for one, _ in loaded] == [model]


def test_a_small_folder_is_an_embedding_model(whole_folder: Path) -> None:
    assert load_embedder(str(whole_folder)).encode(["a text", "lamp on"]).shape == (2, 8)
    assert embedding_findings(str(whole_folder), ["a text"], is_headline=True).refusals == ()


def test_an_unknown_token_without_an_id_is_refused_where_the_tokenizer_is_read(whole_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole_folder, tmp_path / "model")
    setting("tokenizer_config.json", unk_token="")(folder)
    with pytest.raises(ModelUnavailable, match="has unk_token = '', which is no token of its vocabulary"):
        embedding_findings(str(folder), ["a text"], is_headline=True)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (content("tokenizer_config.json", b"[1]"), "cannot be loaded: "),
        (content("tokenizer.json", b"{}"), "cannot be loaded: "),
        (content("tokenizer.json", b"[1]"), "cannot be loaded: "),
        (content("tokenizer_config.json", b"[" * 100_000), "cannot be loaded: "),
        (content("config.json", b"[1]"), "cannot be loaded: "),
        (content("modules.json", b"3"), "cannot be loaded: "),
        (content("modules.json", b'[{"idx": 0, "name": "0", "path": "", "type": "os.system"}]'), "cannot be loaded: "),
        (content("model.safetensors", b""), "cannot be loaded: "),
        (content("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "is a pointer of Git LFS"),
        (linked("model.safetensors", "nowhere"), "model.safetensors is a link to nothing; point to a complete folder"),
        (linked("model.safetensors", "model.safetensors"), "model.safetensors is a link to nothing; point to a complete folder"),
        (pipe, "tokenizer.json is no regular file; point to a complete folder"),
        (setting("sentence_bert_config.json", max_seq_length="x"), "max_seq_length = 'x', which is no number of tokens"),
        (setting("sentence_bert_config.json", max_seq_length=0), "max_seq_length = 0, which is no number of tokens"),
        (content("sentence_bert_config.json", b"[1]"), "sentence_bert_config.json holds a JSON list, not an object"),
        (weights_times(float("nan")), "embeds a text as numbers that are none: its weights are damaged"),
        (weights_times(0), "embeds a text as nothing but zeros: its weights are damaged"),
        (without("query.weight"), "lacks encoder.layer.0.attention.self.query.weight, and they would be random numbers"),
        (without("word_embeddings"), "lacks embeddings.word_embeddings.weight, and they would be random numbers"),
        (without("encoder."), "lacks encoder.layer.0.+ and 13 more, and they would be random numbers"),
        (renamed(lambda name: f"0.auto_model.{name}"), r"lacks .+; it holds 0\.auto_model\.embeddings\.LayerNorm\.bias instead: save"),
        (
            more_weights(encoder__layer__1__output__dense__bias=(8,)),
            "also holds encoder.layer.1.output.dense.bias, and they",
        ),
        (setting("config.json", num_hidden_layers=2), "lacks encoder.layer.1.+ and 13 more, and they would be random numbers"),
        (setting("config.json", num_hidden_layers=1_000_000), r"has num_hidden_layers = 1000000 \(config\.json\) and \d+ weights"),
        (setting("config.json", max_position_embeddings=63), "has of another shape embeddings.position_embeddings.weight"),
        (as_integers, r"holds embeddings\.LayerNorm\.weight as integers \(I8\)"),
        (both(in_a_folder_of_its_own, setting("0_Transformer/config.json", num_hidden_layers=2)), "lacks encoder.layer.1"),
        (
            setting("sentence_bert_config.json", max_seq_length=65),
            "= 65, and the model has positions for 64 tokens; write 64",
        ),
        (setting("sentence_bert_config.json", max_seq_length=10**9), "has positions for 64 tokens; write 64 there"),
        (with_word(500), "has 501 tokens, the model's embedding 12"),
        (setting("tokenizer_config.json", pad_token="[NONE]"), r"pad_token = \[NONE\], which the model does not know"),
        (setting("1_Pooling/config.json", embedding_dimension=10**12), "embeds a text as 1000000000000 numbers .+, and its weights give 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_folder_is_refused_in_one_line(whole_folder: Path, tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    folder = shutil.copytree(whole_folder, tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelUnavailable, match=says) as refusal:
        load_embedder(str(folder))
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    with suppress(ModelUnavailable):  # it reads the tokenizer alone
        embedding_findings(str(folder), ["a text"], is_headline=True)
