"""The one base of all errors that heifyd raises on purpose; imports nothing heavy."""


class HeifydError(Exception):
    """Something went wrong that heifyd has a name for.

    The message is written for the person on call: what happened, whose it is to mend, and what to do.
    A subclass's docstring is its default message.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message if message is not None else (self.__doc__ or "").partition("\n")[0])
