"""What users see when something goes wrong: an error, a warning, an exit code. Each message is one sentence."""

EXIT_FAILURE = 1  # of the machine, such as a full disk
EXIT_INPUT = 2
EXIT_PREEMPTED = 75  # "try again later": training saved after SIGTERM, and the same command resumes it
EXIT_INTERRUPTED = 130


class InputWarning(UserWarning):
    """Something a user gave was changed in order to use it. The message is one sentence."""


class InputError(ValueError):
    """Something a user gave cannot be used. The message is one sentence: what, what is wrong, what to do."""
