"""What a server says that a call used, in whatever wire format: counts that a price is paid for.

Belongs here: telling a number of tokens from what is none. Does not belong here: which fields hold
one (the clients), prices (`protocols`).
"""


def read_token_count(value: object) -> int | None:
    """Return a number of tokens; None where a server sent something else for it.

    `true` is none: Python would count it as one token.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None
