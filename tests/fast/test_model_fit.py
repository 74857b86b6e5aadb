"""Before anything is trained a study says whether its models know the language of its people."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.data.load import load
from clusterlora.errors import BadSettings
from clusterlora.metadata import DataWarnings
from clusterlora.models.base import HOMELM_FOLDER, usable_base
from clusterlora.models.embedding import minilm_folder
from clusterlora.models.fit import MULTILINGUAL, Findings, base_findings, embedding_findings
from clusterlora.models.language import languages
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import ClusteringSettings, DataSettings, EvaluationSettings, ModelSettings, Study, SyntheticSettings
from clusterlora.stages.model_fit import findings
from clusterlora.stages.persona_signal import signal_of_data
from clusterlora.stages.prepare import as_prepared, prepare_study
from tests.fixtures.languages import LANGUAGES, SHORT_ANSWERS
from tests.fixtures.stages import Notes

ENGLISH = "It is the best that we have, and I was there with you for all of it in number {}."
NOUNS = ("bread", "tax", "guitar", "bicycle", "garden", "router", "visa", "boiler")
GERMAN = "Die Rechnung wurde bereits bezahlt, aber der Händler behauptet das Gegenteil, Nummer {}."
CHINESE = "那怎么办呢，先喝口水吧，明天再看第{}次。"


def texts(text: str, n: int = 8) -> Sequence[str]:
    return [f"{text.format(i)} {' '.join([NOUNS[i % len(NOUNS)]] * 3)}" for i in range(n)]


def study(folder: Path, text: str, base: Path | str = HOMELM_FOLDER) -> Study:
    rows = [
        {"persona_id": name, "prompt": f"{name} {i}: {text.format(i)}", "response": f"{name}: {answer}"}
        for name in ("ann", "bob")
        for i, answer in enumerate(texts(text))
    ]
    data = folder / "people.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = DataSettings(source="table", path=str(data), train=4, val=2, test=2)
    return Study(name="own", data=settings, model=ModelSettings(base=str(base), dtype="float32"))


def warning(study: Study) -> Study:
    return replace(study, data=replace(study.data, on_misfit="warn"))


def with_chrf(study: Study) -> Study:
    return replace(study, evaluation=EvaluationSettings(headline="chrf", metrics=("chrf", "nll")))


def test_a_base_that_is_worse_than_a_guess_is_told_with_its_numbers_once(stores: Stores, tmp_path: Path) -> None:
    log = Notes()
    prepare_study(study(tmp_path, ENGLISH), stores, log)
    (line,) = (line for line in log.warnings if "uniform guess" in line)
    for words in ("nats per token, worse than a uniform guess over its 1,024 tokens (6.93)", "choose another --base-model"):
        assert words in line
    again = Notes()
    prepare_study(study(tmp_path, ENGLISH), stores, again)
    assert not again.warnings, "what is decided is not measured again"


def test_what_was_said_against_the_models_is_kept_for_the_report(stores: Stores, tmp_path: Path) -> None:
    own, first = with_chrf(study(tmp_path, CHINESE)), Notes()
    prepare_study(own, stores, first)
    kept = stores.studies.metadata(own.name, DataWarnings)
    assert kept is not None
    assert [f"warning: {sentence}" for sentence in kept.of_models] == first.warnings != []
    again = Notes()
    prepare_study(own, stores, again)
    assert again.warnings == [], "measured once"
    assert stores.studies.metadata(own.name, DataWarnings) == kept


def test_a_language_that_the_embedding_model_does_not_know_is_refused_for_the_headline_only(stores: Stores, tmp_path: Path) -> None:
    asked = study(tmp_path, CHINESE, "homelm")
    with pytest.raises(BadSettings) as refusal:
        prepare_study(asked, stores, SilentLog())
    (line,) = str(refusal.value).splitlines()
    for words in ("embedding model minilm does not know", "%", "multilingual", "evaluation.headline=chrf", "data.on_misfit=warn"):
        assert words in line
    assert list(stores.studies.studies()) == []
    prepare_study(replace(warning(asked), name="insisting"), stores, SilentLog())
    log = Notes()
    prepare_study(with_chrf(asked), stores, log)
    assert any("embedding model minilm does not know" in line for line in log.warnings), "clusters are made of embeddings all the same"
    assert any("times as long" in line for line in log.warnings), "a byte per token in Chinese"


def test_nothing_is_said_about_english_people_and_synthetic_ones(stores: Stores, tmp_path: Path) -> None:
    assert not embedding_findings("minilm", texts(ENGLISH), is_headline=True).warnings
    small = DataSettings(train=1, val=1, test=1, synthetic=SyntheticSettings(cluster_sizes=(1, 2), dialogues=3))
    log = Notes()
    prepare_study(Study(name="small", data=small), stores, log)
    assert not log.warnings


@pytest.mark.parametrize(
    "answer",
    [
        "Ich will heute nicht in die Stadt, weil es so regnet. Was hast du am Montag gemacht?",
        "Ik was gisteren in de stad en het is daar altijd zo druk. Wat vind jij van het nieuwe huis?",
        "Jeg er i byen for at købe en gave til min mor. Vi har været der i går, og det var for koldt.",
        "To jest bardzo dobry pomysł i nie wiem, dlaczego nikt tego do tej pory nie zrobił.",
        "No me digas que no vas a venir a la fiesta. No lo he visto a él, pero me dijo que no.",
        "A minha avó não gosta do pão, mas no jardim come a sopa e no fim pede a conta.",
        "Non so se a casa mia c'è il pane. A me piace molto, ma i ragazzi dicono di no.",
        "Il y a longtemps que je ne l'ai pas vu. On a mangé à la maison, il me l'a dit.",
        "A kutya a házban van, de az is lehet, hogy a gyerekek engedték be. A nap süt.",
    ],
)
def test_short_words_that_english_shares_make_no_other_language_english(answer: str) -> None:
    assert "minilm knows English" in embedding_findings("minilm", [answer] * 4, is_headline=False).warnings[0]


PROSE = (
    "The lights in the living room are on, and I have set them to a warm tone for you.",
    "I have turned the heating down to nineteen degrees, so that you can sleep well.",
    "Your alarm is set for seven in the morning, just like you asked me.",
    "I will play some quiet music from the list that you made last week.",
    "The door is locked and the curtains are closed. What else can I do for you?",
    "There is no milk left, but I have added it to your shopping list.",
)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("n_english", [2, 3, 6], ids=["most", "half", "a third"])
def test_data_of_two_languages_are_told_if_the_model_knows_one_of_them(language: str, n_english: int) -> None:
    foreign = LANGUAGES[language]
    found = embedding_findings("minilm", [*PROSE[:n_english], *foreign], is_headline=True)
    (sentence,) = (*found.refusals, *found.warnings)
    assert f"use a multilingual one such as --set model.embedding={MULTILINGUAL}" in sentence
    assert not embedding_findings("minilm", PROSE[:n_english], is_headline=True).warnings


def test_a_second_language_counts_from_a_tenth_of_the_answers() -> None:
    found = languages([*PROSE * 3, *LANGUAGES["German"][:2]], vocabulary=frozenset(" ".join(PROSE).lower().replace(",", "").split()))
    assert (found.n_foreign, found.n_told) == (2, 20)
    (sentence,) = embedding_findings("minilm", [*PROSE * 3, *LANGUAGES["German"][:2]], is_headline=True).warnings
    assert "2 of a sample of 20 answers that are long enough to tell look like another language" in sentence
    assert not embedding_findings("minilm", [*PROSE * 4, *LANGUAGES["German"][:2]], is_headline=True).warnings


@pytest.mark.parametrize(
    "answers",
    [
        ("ok", "done", "22", "yes", "no", "on", "Ja.", "Sì!"),
        (*PROSE, "ok", "done", "22", "yes", "no", "on"),
        ("def f(x): return x + 1", "for i in range(10): print(i)", "SELECT name FROM users WHERE id = 3", "let α = β * γ", "return -x") * 4,
        (*PROSE, "Zoë Müller, José Ibáñez, Łukasz Żak and Søren Ångström", "Las Vegas, Los Angeles, San José, El Paso, La Paz, Den Haag"),
        (
            *PROSE,
            "A naïve façade: the Café de la Paix has crème brûlée, and that is all that there is.",
            "Ada Lovelace, Dan Brown, Van Morrison",
        ),
        (*PROSE, "Certainly, Dr. van der Berg.", "La dolce vita!", "Voilà!"),
    ],
    ids=["too short", "short among others", "code", "names", "loanwords", "phrases"],
)
def test_english_with_names_and_code_and_answers_too_short_to_tell_say_nothing(answers: Sequence[str]) -> None:
    assert embedding_findings("minilm", answers, is_headline=True) == Findings()


HEADLINES = (
    "Man Arrested After Shooting at Texas Mall",
    "Senate Passes Budget Bill After Marathon Session",
    "5 Ways to Stay Healthy in Winter",
    "Kim Kardashian Shares First Photo of Baby",
    "Stocks Fall as Oil Prices Slide Again",
    "Hillary Clinton Leads Polls in Ohio, Florida",
    "Apple Unveils New iPhone at San Francisco Event",
    "Supreme Court Rules on Same-Sex Marriage Case",
)
TITLES = (
    "Deep Residual Learning for Image Recognition",
    "Generative Adversarial Networks",
    "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    "Sequence to Sequence Learning with Neural Networks",
    "Federated Learning of Deep Networks using Model Averaging",
    "Human-level Control through Deep Reinforcement Learning",
    "Auto-Encoding Variational Bayes",
)
CONFIRMATIONS = (
    "Kitchen lights dimmed to twenty percent for movie night.",
    "Living room television switched on at low volume.",
    "Security system armed in night mode until morning.",
    "Bedroom thermostat lowered to eighteen degrees for sleeping.",
    "Kitchen lights 40 percent, bedroom lights 20 percent, hallway lights off, living room television volume 15, speaker volume 30, "
    "thermostat 21 degrees, security armed, blinds lowered, fan speed low, oven preheated, kettle boiling, dishwasher started",
)


@pytest.mark.parametrize("answers", [HEADLINES, TITLES, CONFIRMATIONS, CONFIRMATIONS[-1:]], ids=["headlines", "titles", "home", "list"])
def test_english_without_articles_and_verbs_is_english(answers: Sequence[str]) -> None:
    assert embedding_findings("minilm", [*answers] * 3, is_headline=True) == Findings()


@pytest.mark.parametrize("language", SHORT_ANSWERS)
@pytest.mark.parametrize("n_english", [0, 6])
def test_another_language_is_told_by_short_answers(language: str, n_english: int) -> None:
    (warning_of_language,) = embedding_findings("minilm", [*PROSE[:n_english], *SHORT_ANSWERS[language] * 3], is_headline=True).warnings
    assert "minilm knows English" in warning_of_language


def test_nothing_is_said_of_a_second_language_that_a_multilingual_model_may_know(tmp_path: Path) -> None:
    folder = tmp_path / "multilingual"
    shutil.copytree(minilm_folder(), folder)
    assert embedding_findings(str(folder), [*PROSE, *LANGUAGES["German"]], is_headline=True) == Findings()


def test_another_language_in_latin_letters_and_texts_that_are_too_long_are_told() -> None:
    german = embedding_findings("minilm", texts(GERMAN), is_headline=True)
    assert not german.refusals
    assert re.search(
        r"minilm knows English, and [1-6]\d% of the words in a sample of \d+ answers are in its vocabulary", german.warnings[0]
    )
    long = embedding_findings("minilm", [*texts(ENGLISH), ENGLISH * 40], is_headline=True)
    assert "reads 254 tokens, and 1 of a sample of 9 answers are longer" in long.warnings[0]


@pytest.mark.parametrize(("share", "n_refused", "n_warned"), [(0.5, 0, 0), (0.95, 0, 1), (1.02, 0, 1), (1.2, 1, 0)])
def test_a_base_is_held_against_a_uniform_guess(share: float, n_refused: int, n_warned: int) -> None:
    base = usable_base("homelm")
    home = ["I've set the lights to warm, and the speaker to 40 percent."] * 4
    said = base_findings("homelm", base.tokenizer, home, nll=share * 6.9315)
    assert (len(said.refusals), len(said.warnings)) == (n_refused, n_warned)


@pytest.mark.whole
@pytest.mark.parametrize(("text", "n_warnings"), [(CHINESE, 1), (ENGLISH, 0)])
def test_a_signal_read_by_an_embedding_model_of_another_language_is_warned_of(text: str, n_warnings: int, tmp_path: Path) -> None:
    log = Notes()
    signal_of_data(replace(study(tmp_path, text), clustering=ClusteringSettings(algorithm="responses", k=2, min_size=1)), log)
    assert len([one for one in log.warnings if "embedding model minilm does not know" in one]) == n_warnings


def test_the_few_tokens_of_labels_say_nothing_of_the_language(stores: Stores, tmp_path: Path) -> None:
    own = warning(study(tmp_path, ENGLISH))
    rows = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text(encoding="utf-8").splitlines()]
    rated = [row | {"response": str(1 + i % 2)} for i, row in enumerate(rows)]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated), encoding="utf-8")
    own = replace(own, data=replace(own.data, task="rating"))
    settings, base = as_prepared(own, stores)
    of_base, _ = findings(settings, base, load(own.data).personas, SilentLog())
    assert not any("times as long" in one for one in of_base.warnings)


def test_only_train_answers_are_read(stores: Stores, tmp_path: Path) -> None:
    settings, base = as_prepared(warning(study(tmp_path, ENGLISH)), stores)
    dataset = prepare_study(warning(study(tmp_path, ENGLISH)), stores, SilentLog())
    hidden = [replace(p, dialogues=tuple(d if d.split == "train" else replace(d, turns=()) for d in p.dialogues)) for p in dataset.personas]
    log = SilentLog()
    assert findings(settings, base, hidden, log) == findings(settings, base, dataset.personas, log)
