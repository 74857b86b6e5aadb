"""Notation of the grammar's phrase lists."""


def phrases(text: str) -> tuple[str, ...]:
    """Return the phrases of a list separated by semicolons."""
    return tuple(text.split(";"))
