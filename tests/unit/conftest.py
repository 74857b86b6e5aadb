"""A real but tiny base model: random weights, its own tokenizer, one chat template. Built in a second, saved as a folder."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from clusterlora.comparison.compare import compare
from clusterlora.comparison.new_personas import Gain, NewPersonas, Outcome
from clusterlora.report.data import Cost, Curve, Example, ExampleAnswer, ReportData
from clusterlora.signal.measure import Recognition, Signal
from clusterlora.values import Attempt, Clustering, Criterion, EvaluationRow, Verdict

if TYPE_CHECKING:
    from clusterlora.models.base import BaseModel

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder lays batches out as it does on a GPU: all rows padded to the longest, one product per site."""
    from torch.nn import functional

    from clusterlora.models.decoder import Decoder, Site
    from clusterlora.models.packing import Padding

    monkeypatch.setattr(Decoder, "padding", Padding(32, alike=True))
    monkeypatch.setattr(Site, "apart", lambda site, x: list(functional.linear(x, site.weight, site.bias).split(site.d_outs, -1)))


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*specials, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.mul_(4)  # random weights of this size would answer everything alike
    folder = tmp_path_factory.mktemp("tiny-base")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(params=["written out", "through transformers"])
def base64(request: pytest.FixtureRequest, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> "BaseModel":
    """The same model in float64 throughout, by both of the engine's passes; transformers' norm would drop to float32 in between."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from clusterlora.models.base import load_base
    from clusterlora.training import passes

    if request.param == "through transformers":
        monkeypatch.setattr(passes, "decoder_of", lambda _model: None)

    def norm(self: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    base = load_base(str(tiny_base_folder))
    base.model.double()
    return base


HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"> @ink $x$ %{x} & 'it'"


def outcome(rule: str, n_examples: int | None, gain: float, leave: float) -> Outcome:
    """Return an outcome for four people with intervals of plus and minus 0.02."""
    gained = Gain(mean=gain, low=gain - 0.02, high=gain + 0.02)
    return Outcome(rule=rule, n_examples=n_examples, n_personas=4, headline=gained, nll=gained, leave=leave, own_cluster=0.75)


@pytest.fixture(scope="session")
def report_data() -> ReportData:
    """A compared study with everything a report can show; one persona's id, a prompt, an answer and a fact try to break out of the page."""
    rng = np.random.default_rng(0)
    people = (HOSTILE, *(f"persona_{number:03d}" for number in range(1, 12)))
    cluster_by_persona = {persona_id: number % 3 for number, persona_id in enumerate(people)}
    means = {"baseline": 0.55, "unified": 0.78, "per_persona": 0.70, "cluster": 0.84}
    rows = []
    for persona_id in people:
        for item in range(4):
            for method, mean in means.items():
                score = float(np.clip(mean + rng.normal(0, 0.04), 0, 1))
                text = HOSTILE if persona_id == HOSTILE else f"{method} dims the lamp in room {item}"
                scores = {"embedding_similarity": score, "nll": 3 - 2 * score}
                cluster = cluster_by_persona[persona_id]
                rows.append(EvaluationRow(method, persona_id, cluster, f"item {item}", f"user: {HOSTILE}", "Lights at 20.", text, scores))
    higher_is_better = {"embedding_similarity": True, "nll": False}
    comparison = compare(rows, headline="embedding_similarity", higher_is_better=higher_is_better, draws=200, rng=rng, floor=0.31)
    members = tuple(tuple(p for p in people if cluster_by_persona[p] == k) for k in range(3))
    answers = {(row.persona_id, row.item_id, row.method): row for row in rows}
    refused = (
        Criterion("above_unified", -0.01, 0.0, False, -0.03, 0.01, f"may be chance, says {HOSTILE}"),
        Criterion("worst_persona", 0.71, 0.70, True, None, None, "good enough"),
    )
    return ReportData(
        study="trial",
        comparison=comparison,
        clustering=Clustering(
            "responses",
            members,
            (("silhouette", 0.12), ("ari_seeds", 0.31), ("ari_bootstraps", 0.92)),
            tuple((p, float(x), float(y)) for p, (x, y) in zip(people, rng.normal(size=(12, 2)), strict=True)),
        ),
        verdicts=(
            Verdict("own", "cluster-00", refused, 4, 16),
            Verdict("warm-start", "cluster-00+warm-start", (Criterion("above_unified", 0.04, 0.0, True, 0.01, 0.07, "better"),), 4, 16),
        ),
        signal=Signal(
            n_personas=12,
            n_exchanges=240,
            persona_from_prompts=Recognition(accuracy=0.1, low=0.05, high=0.15, chance=1 / 12, n_classes=12),
            persona_beyond_prompts=Recognition(accuracy=0.31, low=0.22, high=0.40, chance=1 / 12, n_classes=12),
            cluster_beyond_prompts=Recognition(accuracy=0.6, low=0.5, high=0.7, chance=0.4, n_classes=3),
            persona_explains=0.12,
            cluster_explains=0.08,
            random_explains=0.01,
            distance_within=0.512,
            distance_between=0.598,
        ),
        newcomers=NewPersonas(
            metric="embedding_similarity",
            n_personas=4,
            n_clusters=3,
            n_draws=50,
            chosen=tuple(outcome("chosen", m, gain, leave) for m, gain, leave in ((1, 0.0, 0.0), (3, 0.01, 0.25), (10, 0.0412, 0.5))),
            nearest=tuple(outcome("nearest", m, gain, 1.0) for m, gain in ((1, -0.03), (3, 0.02), (10, 0.04))),
            own=outcome("own cluster", None, 0.05, 1.0),
            oracle=outcome("oracle", None, 0.07, 0.75),
        ),
        held_out_share=0.2,
        curves=(Curve(title="unified", points=tuple((step, 5 / step) for step in range(1, 30)), n_steps=29, complete=True),),
        costs=tuple(
            Cost(method=method, n_adapters=n, n_bytes=n * 1_000_000, train_tokens=n * 5000, train_seconds=n * 2.5)
            for n, method in enumerate(means)
        ),
        examples=tuple(
            Example(
                persona_id=p,
                cluster=cluster_by_persona[p],
                item_id=f"item {item}",
                prompt=f"user: {HOSTILE}",
                reference="Lights at 20.",
                answers=tuple(
                    ExampleAnswer(method=m, text=row.text, score=row.scores["embedding_similarity"])
                    for m in means
                    for row in (answers[p, f"item {item}", m],)
                ),
            )
            for p in people
            for item in range(3)
        ),
        attempts=(Attempt("unified", 1, 2, "out_of_memory", HOSTILE), Attempt("unified", 2, 1, "done")),
        seconds_by_phase=(("train unified", 12.5),),
        settings=(("base model", "homelm"),),
        facts=(("git revision", HOSTILE),),
    )


@pytest.fixture(autouse=True)
def _no_addresses_of_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the stores that tests of flows, in the same process before, named for their whole session."""
    for name in ("CLUSTERLORA_DATABASE_URL", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _audible_loggers() -> None:
    """Undo what Prefect's logging setup, when the same process ran flows before, does to our loggers: caplog listens at the root."""
    for name in ("clusterlora", *(n for n in logging.root.manager.loggerDict if n.startswith("clusterlora."))):
        logger = logging.getLogger(name)
        logger.propagate, logger.disabled = True, False
