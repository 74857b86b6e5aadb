"""The parts of the synthetic source: people, the home, requests and answers."""
