"""User turns: a scene without values, a device without values, or explicit settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from clusterlora.data.generator.home import CLIMATE_OF, DEVICES, SCENES
from clusterlora.data.generator.people import Manner
from clusterlora.data.generator.phrases import phrases
from clusterlora.data.generator.rules import Value


@dataclass(frozen=True, slots=True)
class Request:
    """A user turn. `given` are the settings that its text determines, `wanted` the parameters that the assistant chooses for `scene`."""

    text: str
    scene: str
    given: tuple[tuple[str, Value], ...]
    wanted: tuple[str, ...]


# A statement ends with a full stop; anything else is an instruction, which is put into one of the person's request frames.
_SCENE_WORDS: Mapping[str, tuple[str, ...]] = {
    "waking": phrases(
        "I just woke up.;I am getting up now.;help me wake up;start my morning;get the bedroom ready for the day;"
        "My alarm went off.;I am finally out of bed.;bring me gently into the day"
    ),
    "working": phrases(
        "I have to concentrate now.;set the room up for work;I am starting work at my desk.;get the study ready;"
        "I have a long report to finish.;make this a good place to focus;My meeting starts soon.;"
        "put the room in office shape"
    ),
    "dinner": phrases(
        "Dinner is nearly ready.;set the mood for dinner;We are about to eat.;get the dining room ready;"
        "I am cooking tonight.;make the table feel inviting;The food is on the table.;put something on for the meal"
    ),
    "movie": phrases(
        "It is movie time.;get things ready for a film;I want to watch something.;set up the living room for a movie;"
        "We are starting a film.;make it like a cinema in here;The popcorn is ready.;put the TV on for a film night"
    ),
    "reading": phrases(
        "I am going to read for a while.;make it nice for reading;I have a new book to start.;prepare my reading corner;"
        "Time for a few chapters.;help me settle down with a novel;I want to read in peace.;"
        "get the armchair corner ready for a book"
    ),
    "guests": phrases(
        "Guests are on their way.;get the house ready for company;People are coming over.;make the place ready for a party;"
        "My visitors arrive in ten minutes.;set things up for our friends;We are having people round.;"
        "make it welcoming for visitors"
    ),
    "cosy": phrases(
        "make it cosy in here;I want to feel snug.;make the living room comfortable;I need to unwind.;"
        "It should feel like home now.;create a comfortable mood;I am curling up on the sofa.;help me relax"
    ),
    "bedtime": phrases(
        "I am going to bed.;get everything ready for the night;Time to sleep.;put the house to sleep;I am turning in.;"
        "close the day for me;I can hardly keep my eyes open.;prepare the bedroom for sleep"
    ),
    "leaving": phrases(
        "I am leaving the house.;get the house ready for me to go out;I am off now.;look after the house while I am out;"
        "We will be away for a few hours.;lock up behind me;I am heading out.;put the house in away mode"
    ),
    "climate": phrases(
        "make the temperature right in here;The air in here is not comfortable.;sort out the air in this room;"
        "do something about the climate in here;I do not like how it feels in here.;adjust the air conditioning for me;"
        "The room needs better air.;get the AC going"
    ),
}
_DEVICE_WORDS: Mapping[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "lights": (
        (("brightness", "color"), "turn the lights on"),
        (("brightness", "color"), "put some light on"),
        (("color", "mode"), "give me a different kind of light"),
        (("brightness",), "adjust the lights"),
        (("brightness", "mode"), "see to the lights"),
    ),
    "speaker": (
        (("volume", "equalizer"), "put some music on"),
        (("volume",), "start the speaker"),
        (("volume", "equalizer"), "play something"),
        (("equalizer",), "fix the sound of the speaker"),
        (("volume", "equalizer"), "let me hear my playlist"),
    ),
    "tv": (
        (("input_source", "volume"), "switch the TV on"),
        (("input_source", "brightness"), "start the TV"),
        (("volume", "brightness"), "fix the TV picture and sound"),
        (("input_source",), "find me something on the TV"),
        (("volume",), "adjust the sound of the TV"),
    ),
    "ac": (
        (("temperature", "fan_speed"), "switch the AC on"),
        (("temperature",), "set the AC the way I like it"),
        (("mode", "fan_speed"), "start the air conditioning"),
        (("temperature", "mode"), "see to the temperature"),
        (("fan_speed",), "adjust the fan"),
    ),
    "security": (
        (("alarm_volume",), "pick the alarm volume"),
        (("alarm_volume",), "check the volume of the alarm"),
        (("alarm_volume",), "adjust the alarm"),
    ),
}
_EXPLICIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "lights": phrases(
        "set the lights to {brightness}%;make the lights {color};put the lights in {mode} mode;"
        "set the lights to {brightness}% and {color};turn the lights to {color} and {mode};"
        "bring the lights to {brightness}%"
    ),
    "speaker": phrases(
        "set the speaker to volume {volume};switch the speaker to {equalizer};play at volume {volume} with {equalizer};"
        "put the speaker at {volume};set the sound to {equalizer}"
    ),
    "tv": phrases(
        "switch the TV to {input_source};set the TV volume to {volume};set the TV brightness to {brightness};"
        "open {input_source} on the TV at volume {volume};put {input_source} on with brightness {brightness};"
        "move the TV volume to {volume}"
    ),
    "ac": phrases(
        "set the AC to {temperature} degrees;set the AC to {temperature} degrees in {mode} mode;put the AC in {mode} mode;"
        "set the fan to {fan_speed};make it {temperature} degrees with the fan at {fan_speed};"
        "run the AC at {temperature} degrees"
    ),
    "security": phrases(
        "arm the security;disarm the security;arm the alarm at volume {alarm_volume};set the alarm volume to {alarm_volume}"
    ),
}
_WEATHER_REMARKS: Mapping[str, tuple[str, ...]] = {
    "sunny": phrases("The sun is out.;What a bright {time_of_day}.;Not a cloud to be seen."),
    "cloudy": phrases("It is grey outside.;The sky is all cloud.;A dull {time_of_day} it is."),
    "rainy": phrases("It is pouring outside.;The rain has not stopped.;I got soaked in the rain."),
    "snowy": phrases("It is snowing outside.;The street is white with snow.;More snow is coming down."),
}
_REMARKS = (
    "I just got back from {place}.",
    "I have been {activity}.",
    "{who} called {when}.",
    "{who} is coming by {when}.",
    "I am tired after {activity}.",
    "I thought about {activity} {when}.",
    "It was busy at {place}.",
    "{who} told me about {place}.",
    "I met {who} at {place}.",
    "I was at {place} {when}.",
)
_PLACES = phrases(
    "the market;work;the gym;the dentist;the library;the harbour;my class;the park;the garage;the bank;the station;"
    "the pool;the bakery;town;the clinic;the garden centre;the school"
)
_ACTIVITIES = phrases(
    "cleaning the windows;writing letters;cooking;sorting old photos;fixing the bike;doing the laundry;"
    "on the phone for hours;planting herbs;painting the hall;moving boxes;ironing;practising the piano;paying bills;"
    "looking for my keys;baking;walking the dog"
)
_PEOPLE = phrases(
    "My sister;My neighbour;The plumber;My brother;An old friend;My boss;The landlady;My cousin;A colleague;My aunt;The doctor;My trainer"
)
_WHEN = phrases("today;yesterday;an hour ago;before lunch;just now;last week;this week;again;on the way home;after work")
_LATER_ITS = phrases("later;tomorrow;at eight;on Sunday;soon;after dinner;next week;this weekend")
_FOLLOW_UPS = ("Thanks.", "Perfect.", "Great.", "Good.", "One more thing.", "Also,", "And", "Oh, and", "Nice.", "Lovely.", "Then", "Next,")


def scene_request(scene: str, rng: Random, manner: Manner, meta: Mapping[str, str], *, chatty: bool) -> Request:
    """Return a first turn that names a situation but no setting."""
    words = rng.choice(_SCENE_WORDS[scene])
    text = _opening(rng, manner, meta, _phrased(words, rng, manner), chatty=chatty)
    return Request(text, scene, SCENES[scene].given, SCENES[scene].parameters)


def device_request(device: str, rng: Random, manner: Manner, meta: Mapping[str, str], *, first: bool, chatty: bool) -> Request:
    """Return a turn that names a device and leaves its settings to the assistant."""
    names, words = rng.choice(_DEVICE_WORDS[device])
    scene = "light" if meta["time_of_day"] in ("morning", "afternoon") else "dark"
    return Request(_turn(words, rng, manner, meta, first=first, chatty=chatty), scene, (), tuple(f"{device}.{name}" for name in names))


def explicit_request(device: str, rng: Random, manner: Manner, meta: Mapping[str, str], *, first: bool, chatty: bool) -> Request:
    """Return a turn that names settings of a device, so that its text determines them."""
    words = rng.choice(_EXPLICIT_WORDS[device])
    values = {name: rng.choice(options) for name, options in DEVICES[device].items() if f"{{{name}}}" in words}
    stated = [(f"{device}.{name}", value) for name, value in values.items()]
    if "arm the" in words:
        stated.insert(0, ("security.armed", "disarm" not in words))
    return Request(_turn(words.format(**values), rng, manner, meta, first=first, chatty=chatty), "", tuple(stated), ())


def _turn(words: str, rng: Random, manner: Manner, meta: Mapping[str, str], *, first: bool, chatty: bool) -> str:
    sentence = _phrased(words, rng, manner)
    if first:
        return _opening(rng, manner, meta, sentence, chatty=chatty)
    link = rng.choice(_FOLLOW_UPS)
    if not link.endswith("."):
        sentence = sentence if sentence.startswith("I ") else sentence[0].lower() + sentence[1:]
    return f"{link} {sentence}"


def _phrased(words: str, rng: Random, manner: Manner) -> str:
    sentence = words if words.endswith(".") else rng.choice(manner.frames).format(ask=words)
    return sentence[0].upper() + sentence[1:]


def _opening(rng: Random, manner: Manner, meta: Mapping[str, str], sentence: str, *, chatty: bool) -> str:
    time_of_day = meta["time_of_day"]
    parts = [rng.choice(manner.openers).format(time_of_day=time_of_day)]
    if chatty or rng.random() < manner.chattiness:
        parts.append(_remark(rng, meta))
    parts += [sentence, rng.choice(manner.tails)]
    return " ".join(filter(None, parts))


def _remark(rng: Random, meta: Mapping[str, str]) -> str:
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(_WEATHER_REMARKS[meta["weather"]]).format(time_of_day=meta["time_of_day"])
    if roll < 0.4:
        return _climate_remark(rng, meta)
    remark = rng.choice(_REMARKS)
    who = rng.choice(_PEOPLE)
    when: Sequence[str] = _LATER_ITS if "coming by" in remark else _WHEN
    if not remark.startswith("{who}"):
        who = who[0].lower() + who[1:]
    return remark.format(place=rng.choice(_PLACES), activity=rng.choice(_ACTIVITIES), who=who, when=rng.choice(when))


def _climate_remark(rng: Random, meta: Mapping[str, str]) -> str:
    feeling = {
        "cold": ("My hands are freezing.", "It is bitter out there.", "I am still shivering."),
        "mild": ("It is pleasant out there.", "The air is mild.", "Nice temperature outside."),
        "hot": ("I am melting.", "It is so warm out there.", "The heat is on outside."),
    }
    return rng.choice(feeling[CLIMATE_OF[meta["outdoor_temp"]]])
