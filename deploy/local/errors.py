"""The error of the local programs."""


class RunnerError(Exception):
    """A failure that the user can correct. Its message is printed, without a traceback."""
