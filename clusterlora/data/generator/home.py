"""The home: devices, the values of their parameters, and the scenes that people name instead of values."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from clusterlora.data.generator.rules import Choice, Value

DEVICES: Mapping[str, Mapping[str, tuple[Value, ...]]] = {
    "tv": {
        "input_source": ("HDMI1", "HDMI2", "AV", "Netflix", "YouTube"),
        "volume": tuple(range(0, 101, 5)),
        "brightness": tuple(range(0, 101, 5)),
    },
    "ac": {"temperature": tuple(range(16, 31)), "mode": ("cool", "heat", "auto"), "fan_speed": (0, 1, 2, 3)},
    "lights": {
        "brightness": tuple(range(5, 101, 5)),
        "color": ("warm", "cool", "neutral"),
        "mode": ("static", "dynamic"),
    },
    "speaker": {"volume": tuple(range(0, 101, 5)), "equalizer": ("bass boost", "balanced", "treble boost")},
    "security": {"armed": (True, False), "alarm_volume": tuple(range(10, 101, 10))},
}
"""Every value that a user may request, by device and parameter. Volume and brightness in percent, temperature in degrees Celsius."""

FAVOURITES: Mapping[str, tuple[Value, ...]] = {
    "tv.volume": (10, 20, 30, 40, 55, 70),
    "tv.brightness": (20, 35, 50, 65, 80, 95),
    "lights.brightness": (10, 25, 40, 55, 70, 90),
    "speaker.volume": (10, 20, 35, 50, 65, 80),
    "security.alarm_volume": (20, 40, 60, 80, 100),
}
"""Values that people prefer, if these are fewer than the possible ones; far enough apart to differ audibly and visibly."""

CLIMATES: Mapping[str, Mapping[str, tuple[Value, ...]]] = {
    "cold": {"temperature": (20, 21, 22, 23, 24, 26), "mode": ("heat", "auto"), "fan_speed": (0, 1, 2, 3)},
    "mild": {"temperature": (19, 20, 21, 22, 23, 25), "mode": ("auto", "cool", "heat"), "fan_speed": (0, 1, 2, 3)},
    "hot": {"temperature": (16, 18, 19, 20, 22, 24), "mode": ("cool", "auto"), "fan_speed": (0, 1, 2, 3)},
}
"""Sensible settings of the air conditioning, by the climate outside."""

CLIMATE_OF: Mapping[str, str] = {"very cold": "cold", "cold": "cold", "mild": "mild", "warm": "hot", "hot": "hot"}

TIMES = ("morning", "afternoon", "evening", "night")


@dataclass(frozen=True, slots=True)
class Scene:
    """A situation that people name instead of settings: its parameters, times of day, and the triggers of its routine."""

    parameters: tuple[str, ...]
    times: tuple[str, ...]
    triggers: tuple[tuple[str, str], ...]
    given: tuple[tuple[str, Value], ...] = ()


SCENES: Mapping[str, Scene] = {
    "waking": Scene(("lights.brightness", "lights.color", "speaker.volume"), ("morning",), (("time_of_day", "morning"),)),
    "working": Scene(
        ("lights.brightness", "lights.color", "ac.temperature"),
        ("morning", "afternoon"),
        (("time_of_day", "afternoon"), ("day_of_week", "weekday")),
    ),
    "dinner": Scene(
        ("lights.color", "speaker.volume", "speaker.equalizer"),
        ("afternoon", "evening"),
        (("time_of_day", "evening"), ("day_of_week", "weekday")),
    ),
    "movie": Scene(
        ("tv.input_source", "tv.volume", "lights.brightness"),
        ("evening", "night"),
        (("time_of_day", "evening"), ("day_of_week", "weekend")),
    ),
    "reading": Scene(
        ("lights.brightness", "lights.color", "speaker.volume"),
        ("afternoon", "evening", "night"),
        (("time_of_day", "evening"), ("weather", "rainy")),
    ),
    "guests": Scene(
        ("lights.mode", "lights.color", "speaker.volume"),
        ("afternoon", "evening"),
        (("day_of_week", "weekend"), ("sun_phase", "after_sunset")),
    ),
    "cosy": Scene(
        ("lights.brightness", "lights.color", "ac.temperature"),
        ("afternoon", "evening", "night"),
        (("time_of_day", "evening"), ("outdoor_temp", "cold")),
    ),
    "bedtime": Scene(
        ("lights.brightness", "ac.temperature", "security.alarm_volume"),
        ("evening", "night"),
        (("time_of_day", "night"),),
        (("security.armed", True),),
    ),
    "leaving": Scene(
        ("security.alarm_volume", "ac.mode"),
        ("morning", "afternoon"),
        (("time_of_day", "morning"), ("day_of_week", "weekday")),
        (("security.armed", True),),
    ),
    "climate": Scene(("ac.temperature", "ac.mode", "ac.fan_speed"), TIMES, ()),
}


def preference(parameter: str, *, scene: str, climate: str) -> Choice:
    """Return the choice for a parameter: its context is the climate for the air conditioning, the scene for everything else."""
    device, name = parameter.split(".")
    if device == "ac":
        return Choice(parameter, climate, CLIMATES[climate][name])
    return Choice(parameter, scene, FAVOURITES.get(parameter, DEVICES[device][name]))


def surroundings(rng: Random, time_of_day: str) -> dict[str, str]:
    """Return the `meta` of a session at a time of day, with a temperature that suits the weather."""
    weather = rng.choice(("sunny", "cloudy", "rainy", "snowy"))
    temperatures = {"snowy": ("very cold", "cold"), "rainy": ("cold", "mild", "warm")}
    phases = {"morning": ("before_sunrise", "daylight"), "afternoon": ("daylight",), "evening": ("daylight", "after_sunset")}
    return {
        "time_of_day": time_of_day,
        "day_of_week": rng.choice(("weekday", "weekday", "weekday", "weekend", "weekend")),
        "sun_phase": rng.choice(phases.get(time_of_day, ("after_sunset",))),
        "weather": weather,
        "outdoor_temp": rng.choice(temperatures.get(weather, ("cold", "mild", "warm", "hot"))),
    }
