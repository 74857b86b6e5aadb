"""The notation of the grammar's word lists."""


def phrases(text: str) -> tuple[str, ...]:
    """Return the phrases of a list written with semicolons."""
    return tuple(text.split(";"))
