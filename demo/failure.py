"""What ends a demonstration early."""


class Failed(Exception):
    """Something was not as it must be; the message says what was expected and what came."""


class Interrupted(BaseException):
    """A signal asked us to stop.

    Attributes:
        exit_code: 128 + the signal's number, as a shell says it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
