"""People: name, description in prose, and manner of speaking."""

from dataclasses import dataclass
from random import Random

from clusterlora.data.generator.phrases import phrases

_WOMEN = phrases(
    "Nora;Alma;Ines;Priya;Greta;Salma;Yuki;Olga;Carmen;Lena;Freya;Zoe;Hana;Marta;Aisha;Ruth;Elif;Ivana;Dora;Mei;Signe;"
    "Paula;Tanja;Rosa;Amara;Clara;Edith;Leila;Vera;Joan"
)
_MEN = phrases(
    "Tomas;Arjun;Felix;Omar;Kenji;Pavel;Diego;Lars;Hugo;Samir;Otto;Marek;Ivan;Joel;Emre;Dario;Bruno;Sven;Mateo;Ravi;Anton;"
    "Cyril;Jonas;Karim;Leo;Nils;Oscar;Peter;Quentin;Walter"
)
_LAST = phrases(
    "Adler;Bianchi;Cohen;Dahl;Eriksen;Fuchs;Garcia;Haddad;Ito;Jansen;Kowalski;Lind;Moreau;Novak;Okafor;Park;Quist;Rossi;"
    "Sato;Tanaka;Ulrich;Varga;Weber;Xu;Yilmaz;Zeman;Almeida;Barros;Costa;Duarte;Evans;Farkas;Grant;Holm;Ibrahim;Juhasz;"
    "Keller;Lopez;Meyer;Nilsen;Ortega;Petrov;Reyes;Singh;Torres;Urban;Vogel;Wright;Yamada;Zhang;Brandt;Castro;Dubois;"
    "Flores;Gomez;Horvat;Iqbal;Kaya;Larsen;Marino"
)
_JOBS = phrases(
    "works nights at a bakery;teaches chemistry at a secondary school;drives a tram;repairs violins;"
    "keeps the books of a shipping firm;is a nurse in a children's ward;writes crime novels;runs a small flower shop;"
    "is retired from the post office;designs playgrounds;translates contracts from home;is studying to become a vet;"
    "manages a climbing gym;builds wooden boats;reads gas meters;is a court clerk;paints houses;sells insurance by phone;"
    "researches sea ice;cooks in a hotel;leads walking tours;programs traffic lights;tunes pianos;"
    "looks after two allotments and an archive;is between jobs;fits spectacles"
)
_HOBBIES = phrases(
    "restoring radios;long-distance swimming;growing chillies;amateur astronomy;board games;baking rye bread;bird watching;"
    "old westerns;choir singing;model railways;calligraphy;cycling;chess by post;knitting;home brewing;salsa dancing;"
    "collecting maps;karaoke;bouldering;jazz records;crosswords;fishing;photography;video games;pottery;origami"
)
_HOUSEHOLDS = phrases(
    "alone in a top-floor flat;with a partner and two cats;with three teenagers;in a shared house near the station;"
    "with an elderly mother;with a husband and a newborn;with a wife and a large dog;in a converted barn;"
    "alone with a parrot;with a sister in a terraced house;in a basement studio;with two flatmates who work shifts;"
    "with a son who visits at weekends;on a houseboat;in a bungalow by the sea;above a bookshop"
)
_TEMPERAMENTS = phrases(
    "calm and deliberate;quick to laugh;rather private;warm-hearted and talkative;exact about small things;"
    "restless before noon;old-fashioned in manners;dry and sparing with words;easily enthused;patient to a fault"
)
_TEMPLATES = (
    "{name}, {age}, {job} and lives {household}. Friends call {them} {temperament}; free evenings go to {hobby}.",
    "{name} is {age} and {job}. Home is life {household}. {They} is {temperament} and spends spare hours on {hobby}.",
    "Lives {household}: that is {name}, {age}, who {job}. A fan of {hobby}, {temperament}.",
    "At {age}, {name} {job}. {They} lives {household}, loves {hobby}, and is {temperament} by nature.",
    "{name} ({age}) {job}. The neighbours, who know {them} as {temperament}, hear about {hobby} often. {They} lives {household}.",
)

OPENERS = phrases(
    "Hello.;Hi there!;Hey house!;Good {time_of_day}!;Me again.;Right then.;Hey!;Listen.;Okay.;Hello, home!;So.;Are you there?;Hi!;Well now."
)
TAILS = phrases(
    "Thanks!;Thank you.;Cheers.;Thanks a lot.;Much obliged.;That would be great.;No rush.;Whenever you can.;"
    "Quickly, please.;If you don't mind."
)
FRAMES = phrases(
    "please {ask}.;could you {ask}?;{ask}.;I would like you to {ask}.;would you {ask}, please?;can you {ask}?;"
    "go ahead and {ask}.;{ask}, please.;I want you to {ask}.;kindly {ask}."
)

_HINT = 0.3
"""Probability that the cluster determines the temperament: a description is only weak evidence of preferences."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a person makes requests: habitual openings, endings and phrasings, and how often they chat."""

    openers: tuple[str, ...]
    tails: tuple[str, ...]
    frames: tuple[str, ...]
    chattiness: float


@dataclass(frozen=True, slots=True)
class Person:
    """A person who lives in the home and talks to the assistant."""

    first: str
    last: str
    title: str
    description: str
    manner: Manner


def invent(rng: Random, *, cluster: int) -> Person:
    """Return a person. The cluster affects nothing but the temperament in the description, with probability _HINT."""
    woman = rng.random() < 0.5
    first, last = rng.choice(_WOMEN if woman else _MEN), rng.choice(_LAST)
    hinted = rng.random() < _HINT
    temperament = _TEMPERAMENTS[cluster % len(_TEMPERAMENTS)] if hinted else rng.choice(_TEMPERAMENTS)
    description = rng.choice(_TEMPLATES).format(
        name=f"{first} {last}",
        age=rng.randint(19, 84),
        job=rng.choice(_JOBS),
        household=rng.choice(_HOUSEHOLDS),
        hobby=rng.choice(_HOBBIES),
        temperament=temperament,
        them="her" if woman else "him",
        They="She" if woman else "He",
    )
    manner = Manner(
        openers=("", *rng.sample(OPENERS, 3)),
        tails=("", *rng.sample(TAILS, 2)),
        frames=tuple(rng.sample(FRAMES, 4)),
        chattiness=rng.uniform(0.2, 0.8),
    )
    return Person(first, last, "Ms" if woman else "Mr", description, manner)
