"""The one exception that reaches the user as a sentence, never as a traceback."""


class UserError(Exception):
    """Bad input: the message names the value, the limit and the remedy; the command line exits with status 2.

    No ValueError: tyro would catch it where options validate themselves, and print a page of its own.
    """
