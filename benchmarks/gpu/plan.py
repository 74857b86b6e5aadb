"""Which parts are measured, and in which order."""

from benchmarks.gpu import peers
from benchmarks.gpu.parts import SHORT, Alone, Answers, Card, Many, Part, Peers, Profile, Together
from benchmarks.gpu.shapes import Lengths

_MISSION_128 = Together(name="135m-128", usual_seconds=25, shape="SmolLM2-135M", adapters=128, repetitions=2)
_QWEN_64 = Together(name="0.5b-64", usual_seconds=20, shape="Qwen2.5-0.5B", adapters=64)
_LONG = Lengths((512, 256))
_QWEN_16 = Together(name="1.5b-16", usual_seconds=20, shape="Qwen2.5-1.5B", adapters=16, dialogues=24, epochs=1, lengths=_LONG)
_LLAMA_16 = Together(name="8b-16", usual_seconds=22, shape="Llama-3.1-8B", adapters=16, dialogues=12, epochs=1, lengths=_LONG)

FULL: tuple[Part, ...] = (
    Card(),
    _MISSION_128,
    Alone(name="135m-1", usual_seconds=20, shape="SmolLM2-135M"),
    _QWEN_64,
    _LLAMA_16,
    _QWEN_16,
    Peers(beside=_MISSION_128, usual_seconds=35),
    Peers(beside=_LLAMA_16, usual_seconds=35, dialogues=12),
    Answers(name="answers-64", usual_seconds=30, shape="Qwen2.5-0.5B", adapters=64),
    Many(name="pack-4096", usual_seconds=45, shape="SmolLM2-135M", adapters=4096, few=256),
    Peers(beside=_QWEN_64, usual_seconds=45, dialogues=24),
    Profile(name="profile-135m-128", shape="SmolLM2-135M", adapters=128, passes=3),
    Profile(name="profile-135m-1", shape="SmolLM2-135M", adapters=1, passes=50),
    Peers(beside=_QWEN_16, usual_seconds=45, dialogues=12),
    Together(name="8b-nf4-16", usual_seconds=45, shape="Llama-3.1-8B", adapters=16, dialogues=12, epochs=1, lengths=_LONG, nf4=True),
    Peers(beside=_MISSION_128, usual_seconds=60, peers=(peers.UNSLOTH,)),
    Peers(beside=_QWEN_16, usual_seconds=60, dialogues=12, peers=(peers.UNSLOTH,)),
)
"""All parts; the first is measured in every run."""

_TINY_2 = Together(name="135m-128", usual_seconds=1, shape="tiny llama", adapters=3, dialogues=6, epochs=1, repetitions=2)
_TINY_LONG = Together(name="8b-16", usual_seconds=1, shape="tiny qwen2", adapters=2, dialogues=4, epochs=1, lengths=SHORT)

TINY: tuple[Part, ...] = (
    Card(n=128, copied_bytes=1 << 20),
    _TINY_2,
    Peers(beside=_TINY_2, usual_seconds=60, dialogues=6),
    Alone(name="135m-1", usual_seconds=1, shape="tiny llama", steps=4),
    _TINY_LONG,
    Peers(beside=_TINY_LONG, usual_seconds=60, dialogues=6),
    Profile(name="profile-135m-128", shape="tiny llama", adapters=2, passes=1),
    Many(name="pack-4096", usual_seconds=1, shape="tiny llama", adapters=20, few=4),
    Answers(name="answers-64", usual_seconds=1, shape="tiny qwen2", adapters=4, new_tokens=3, repetitions=1, peft_adapters=2),
    Together(name="8b-nf4-16", usual_seconds=1, shape="tiny llama", adapters=2, dialogues=4, epochs=1, nf4=True),
    Peers(beside=_TINY_2, usual_seconds=60, dialogues=6, peers=(peers.UNSLOTH,)),
)
"""The same code with figures that mean nothing, for tests on a CPU."""
