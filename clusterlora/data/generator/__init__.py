"""The parts of the synthetic source: people, their homes, what they ask and how the assistant answers."""
