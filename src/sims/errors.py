"""The one exception that reaches the user as a sentence, never as a traceback."""


class UserError(ValueError):
    """Bad input: the message names the value, the limit and the remedy; the command line exits with status 2."""
