"""Device actions parsed from the sentences of an answer, and the three metrics on them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.generator.home import DEVICES
from clusterlora.data.generator.replies import TONES
from clusterlora.evaluation.actions import Value, actions, overlap_f1
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS

Settings = Mapping[tuple[str, str], Value]


class NoEmbedder:
    """For metrics that read words alone."""

    name = "none"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        raise AssertionError(f"asked to embed {len(texts)} texts")


def score(metric: str, text: str, reference: str) -> float:
    return METRICS[metric].score(Scorable(texts=[text], references=[reference], embedder=NoEmbedder()))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "I have set the TV to HDMI1, volume 30, brightness 40 and the AC to 22 degrees, cool mode, fan 2.",
            {
                ("tv", "input_source"): "hdmi1",
                ("tv", "volume"): 30,
                ("tv", "brightness"): 40,
                ("ac", "temperature"): 22,
                ("ac", "mode"): "cool",
                ("ac", "fan_speed"): 2,
            },
        ),
        (
            "Done: lights 55%, cool and speaker volume 20, bass boost and security disarmed, alarm 80.",
            {
                ("lights", "brightness"): 55,
                ("lights", "color"): "cool",
                ("speaker", "volume"): 20,
                ("speaker", "equalizer"): "bass_boost",
                ("security", "armed"): "disarmed",
                ("security", "alarm_volume"): 80,
            },
        ),
        (
            "Right away. I've dimmed the lights to 15 brightness, made the color neutral and the mode dynamic.",
            {("lights", "brightness"): 15, ("lights", "color"): "neutral", ("lights", "mode"): "dynamic"},
        ),
        (
            "The volume of the TV is at 35 with Netflix as input, and the brightness is 60.",
            {("tv", "volume"): 35, ("tv", "input_source"): "netflix", ("tv", "brightness"): 60},
        ),
        (
            "Air conditioning on heating at 24.5°, and the fan speed is set to 1. The temperature stays there until 7 am.",
            {("ac", "mode"): "heat", ("ac", "temperature"): 24.5, ("ac", "fan_speed"): 1},
        ),
        (
            "I armed the security system with the alarm volume at 60! The speaker has a balanced equaliser.",
            {("security", "armed"): "armed", ("security", "alarm_volume"): 60, ("speaker", "equalizer"): "balanced"},
        ),
        ("The lights are on.", {("lights", "power"): "on"}),
        ("I've turned off the TV.", {("tv", "power"): "off"}),
        ("I turned the lights off and switched the AC on.", {("lights", "power"): "off", ("ac", "power"): "on"}),
        (
            "The lamp in the living room has been turned off, and the speaker is now on.",
            {("lights", "power"): "off", ("speaker", "power"): "on"},
        ),
        ("I turned off the TV and the lights.", {("tv", "power"): "off", ("lights", "power"): "off"}),
        ("The TV, the AC and the lights are off.", {("tv", "power"): "off", ("ac", "power"): "off", ("lights", "power"): "off"}),
        (
            "The lights are on at 40%, and I turned off the TV.",
            {("lights", "power"): "on", ("lights", "brightness"): 40, ("tv", "power"): "off"},
        ),
        ("The TV was off. It is on Netflix, so the TV is on.", {("tv", "power"): "on", ("tv", "input_source"): "netflix"}),
        ("The TV is on HDMI1, music plays on the speaker and the AC is not on.", {("tv", "input_source"): "hdmi1"}),
        ("The alarm went off at dawn, so I am off now, but the lamp keeps an eye on things.", {}),
        ("I set the lights to 40%. I will keep an eye on things.", {("lights", "brightness"): 40}),
        ("The AC is at 22 for the next 45 minutes.", {("ac", "temperature"): 22}),
        ("The fan speed is 3.", {("ac", "fan_speed"): 3}),
        ("The lights go to 40%. No, make that 60%.", {("lights", "brightness"): 60}),
        ("The lights are at 2700K and the TV started at 20:15.", {}),
        ("What temperature should the AC be set to, 22 degrees?", {}),
        ("The weather is warm and cool jazz is playing; a balanced day, 30 of them.", {}),
        ("", {}),
    ],
)
def test_settings_are_parsed_from_a_sentence(text: str, expected: Settings) -> None:
    assert actions(text).settings == expected


def test_a_device_is_named_in_statements_with_or_without_a_setting() -> None:
    assert actions("The TV is on and I turned the lamp off. Shall I turn off the AC?").devices == {"tv", "lights"}
    assert actions("The fan speed is 3.").devices == {"ac"}
    assert actions("He was called to the bar in the light of day.").devices == frozenset()


def phrase(parameter: str, value: object) -> str:
    """Return a setting as the generator phrases it, independently of its code."""
    device, name = parameter.split(".")
    if name == "armed":
        return "armed" if value else "disarmed"
    numbers = {"temperature": "{} degrees", "fan_speed": "fan {}", "alarm_volume": "alarm {}", "volume": "volume {}"}
    numbers |= {"brightness": "{}%" if device == "lights" else "brightness {}"}
    return f"{value} mode" if parameter == "ac.mode" else numbers.get(name, "{}").format(value)


PARAMETERS = [(f"{device}.{name}", values) for device, names in DEVICES.items() for name, values in names.items()]
ONE_SETTING = st.sampled_from(PARAMETERS).flatmap(lambda pair: st.tuples(st.just(pair[0]), st.sampled_from(pair[1])))


@given(st.lists(ONE_SETTING, min_size=1, max_size=6, unique_by=lambda pair: pair[0]), st.sampled_from(sorted(TONES)))
def test_every_setting_of_the_synthetic_home_is_read_back_in_every_tone(settings: list[tuple[str, object]], tone: str) -> None:
    names = {"tv": "TV", "ac": "AC"}
    by_device: dict[str, list[str]] = {}
    for parameter, value in settings:
        device = parameter.split(".")[0]
        by_device.setdefault(device, []).append(phrase(parameter, value))
    joined = "{} {}" if TONES[tone].bare else "the {} to {}"
    listed = " and ".join(joined.format(names.get(device, device), ", ".join(parts)) for device, parts in by_device.items())
    text = TONES[tone].frame.format(ack="Very well", address=", captain", settings=listed) + " Does that feel right?"
    expected: dict[tuple[str, str], float | str] = {}
    for parameter, value in settings:
        device, name = parameter.split(".")
        word = ("armed" if value else "disarmed") if name == "armed" else str(value).lower().replace(" ", "_")
        expected[device, name] = float(value) if isinstance(value, int) and name != "armed" else word
    assert actions(text).settings == expected


@given(st.text(max_size=80))
def test_any_text_can_be_parsed(text: str) -> None:
    parsed = actions(text)
    assert {device for device, _ in parsed.settings} <= parsed.devices <= DEVICES.keys()


def test_f1_of_sets() -> None:
    assert overlap_f1({"tv", "ac"}, {"tv"}) == pytest.approx(2 / 3)
    assert (overlap_f1({1}, {1}), overlap_f1({1}, {2}), overlap_f1(set(), {1}), overlap_f1(set(), set())) == (1, 0, 0, 1)


REFERENCE = "I have set the lights to 40%, warm and the AC to 22 degrees, heat mode."


@pytest.mark.parametrize(
    ("text", "device", "parameter", "numeric"),
    [
        (REFERENCE, 1.0, 1.0, 1.0),
        ("Sure! The AC now heats in heat mode at 22 degrees, and the lights have a warm color at 40% brightness.", 1.0, 1.0, 1.0),
        # The same parameters, one of two numbers wrong.
        ("I have set the lights to 45%, warm and the AC to 22 degrees, heat mode.", 1.0, 1.0, 0.5),
        # Three of four parameters said, one of them with another word: two right of three said and four wanted.
        ("I have set the lights to 40%, cool and the AC to 22 degrees.", 1.0, 2 * 2 / (3 + 4), 1.0),
        ("I have set the speaker to volume 40 and the lights to 40%.", 0.5, 2 * 1 / (2 + 4), 0.5),
        ("What would you like?", 0.0, 0.0, 0.0),
        ("The lights and the AC are off.", 1.0, 0.0, 0.0),
    ],
)
def test_scores_of_actions_agree_with_hand_computed_ones(text: str, device: float, parameter: float, numeric: float) -> None:
    values = [score(metric, text, REFERENCE) for metric in ("device_f1", "parameter_f1", "numeric_accuracy")]
    assert values == pytest.approx([device, parameter, numeric])


def test_a_device_that_is_on_is_not_one_that_is_off() -> None:
    assert score("parameter_f1", "The lights are on.", "The lights are off.") == 0.0
    assert score("parameter_f1", "I turned off the lights.", "The lights are off.") == 1.0


OFF, ON = {("tv", "power"): "off"}, {("tv", "power"): "on"}
BOTH_OFF = {("tv", "power"): "off", ("lights", "power"): "off"}


@pytest.mark.parametrize(
    "text",
    [
        "I haven't turned on the TV yet.",
        "Don’t turn off the lights and the TV.",
        "I couldn't turn the TV on.",
        "I was unable to turn off the TV.",
        "The AC and the TV have not been switched on yet.",
        "Neither the TV nor the lights are on.",
        "No lights are on, and the TV is no longer on.",
        "Never leave the AC on.",
        "The TV was on, but I didn't turn it off.",
        "The TV was off when I came, and the lights had been on.",
        "Tell me if the TV is off.",
        "Everything except the TV and the lights is off.",
        "I turned off everything except the lights.",
        "All but the lights are off.",
        "The TV is off-limits.",
        "The alarm is not armed, and I haven't set the AC to cool mode or the speaker to volume 30.",
        "I don't think the TV is off.",
        "I am not very sure the living room lights are off.",
        "I can't tell you the TV is off, and it is not that I turned off the lights.",
        "Never have I turned on the TV.",
        "Not all the lights are on, and not even the TV is on.",
        "If the lights in the living room and the TV are off you can sleep.",
        "If you'd like I can turn off the TV.",
        "Unless you are home I will turn off the TV.",
        "Everything, except the TV, is off.",
        "I can't sleep with the TV at volume 30.",
    ],
)
def test_what_is_denied_or_excepted_or_was_before_sets_nothing(text: str) -> None:
    assert actions(text).settings == {}
    assert score("parameter_f1", text, "I turned off the TV and the lights, and the AC is on.") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't worry, I turned off the TV.", OFF),
        ("No, the TV is off.", OFF),
        ("I did not touch the lights and turned off the TV.", OFF),
        ("I turned off the TV, not the lights.", OFF),
        ("I turned off the TV rather than the lights.", OFF),
        ("The speaker isn't loud. The TV is not only off, it stays off.", OFF),
        ("Set the AC to no more than 22 degrees.", {("ac", "temperature"): 22}),
        ("Since you are not home the TV is off.", OFF),
        ("As you cannot sleep I turned off the TV.", OFF),
        ("No need to get up as the TV is off.", OFF),
        ("Not to worry the lights and the TV in the hall are off.", BOTH_OFF),
        ("The TV was loud. Not to worry it's off.", OFF),
        ("Without further ado I turned on the TV.", ON),
        ("If you don't mind I have set the AC to 22 degrees.", {("ac", "temperature"): 22}),
        ("The AC is not too cold at 22 degrees.", {("ac", "temperature"): 22}),
        ("I did not touch the lights but the TV is off.", OFF),
        ("I did not touch the lights and the TV is off.", OFF),
        ("The TV, not the lights, is off.", OFF),
    ],
)
def test_a_denial_ends_with_its_clause(text: str, expected: Settings) -> None:
    assert actions(text).settings == expected


@pytest.mark.parametrize("verb", ["are", "have been turned", "are now"])
def test_the_subject_of_a_verb_is_no_object_of_the_verb_before(verb: str) -> None:
    expected = {**OFF, ("lights", "power"): "on"}
    assert actions(f"I turned off the TV and the lights {verb} on.").settings == expected
    assert actions(f"I turned off the TV and the lights in the hall {verb} on.").settings == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The TV was on, so I turned it off.", OFF),
        ("I switched the input of the TV to HDMI 1 and turned it on.", {("tv", "input_source"): "hdmi1", **ON}),
        ("The TV was off. It's on now.", ON),
        ("The lights and the TV are loud. I turned them both off.", BOTH_OFF),
        ("The lights were on with the TV on Netflix. They are off now.", {("tv", "input_source"): "netflix", **OFF}),
        ("I turned it off. The TV is silent.", {}),
    ],
)
def test_a_pronoun_stands_for_what_was_named_last(text: str, expected: Settings) -> None:
    assert actions(text).settings == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- Lights: off\n- TV: off", BOTH_OFF),
        ("**Lights:** off, **TV**: off", BOTH_OFF),
        ("| Lights | off |\n| TV | off |", BOTH_OFF),
        ("Lights and TV: off", BOTH_OFF),
        ("TV power = on", ON),
        ("Set the TV to off.", OFF),
        ("The TV's off, and the lights are both still off.", BOTH_OFF),
        ("TV: on the wall, lights: on/off", {}),
        ("TV – off\nLights — off", BOTH_OFF),
        ("TV (off), lights (off)", BOTH_OFF),
        ('{"tv": "off", "lights": {"power": "off"}}', BOTH_OFF),
        ("The lights in the living room: off, TV (bedroom): off", BOTH_OFF),
        ("Off: TV, lights", BOTH_OFF),
        ("Sure! **Off:** the TV and the lights", BOTH_OFF),
        ("Turned off: TV, lights", BOTH_OFF),
        ("The following are off: TV, lights.", BOTH_OFF),
        ("I turned off these devices: the TV and the lights.", BOTH_OFF),
        ("On: lights, off: TV", {**OFF, ("lights", "power"): "on"}),
        ("The TV is off: the lights are dim.", OFF),
        ("I switched the TV from on to off.", OFF),
        ("TV: on -> off", OFF),
        ("Turn the TV off and on again", ON),
        ("The TV has been on since 8 pm.", ON),
        ("I turned the TV off before dinner.", OFF),
        ("On/off: TV, lights", {}),
    ],
)
def test_a_list_of_devices_and_states_is_read(text: str, expected: Settings) -> None:
    assert actions(text).settings == expected


@pytest.mark.parametrize("metric", ["device_f1", "parameter_f1", "numeric_accuracy"])
def test_if_the_reference_has_no_actions_only_an_answer_without_actions_scores_1(metric: str) -> None:
    assert score(metric, "To be, or not to be.", "That is the question.") == 1.0
    assert score(metric, "", "That is the question.") == 1.0
    assert score(metric, "I have set the TV to volume 30.", "That is the question.") == 0.0
