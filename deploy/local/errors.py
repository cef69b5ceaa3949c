"""The one error of the local runner."""


class RunnerError(Exception):
    """Something the user can mend; its message is the one line to show."""
