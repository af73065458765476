"""What a signal that ends a program does to a training."""

import os
import signal
import threading
from typing import NoReturn


class Interrupted(RuntimeError):
    """SIGINT or SIGTERM came; the state is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def end_on_sigterm() -> None:
    """SIGTERM ends the program at once where no training saves first, also the first process of a
    container, for which the system ignores signals that nobody has asked for."""
    this = os.getpid()

    def end(number: int, frame: object) -> NoReturn:
        del frame
        if os.getpid() == this:
            # No worker process. What is underway is not finished; the next start copes with it.
            os.write(2, b"ended by SIGTERM. To continue, run the same command again\n")
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)


class SignalWatch:
    """Remembers SIGINT and SIGTERM until the loop has finished its step; a second one kills."""

    def __init__(self):
        self.received = 0

    @property
    def name(self) -> str:
        return signal.Signals(self.received).name

    def __enter__(self):
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        del frame
        self.received = number
        signal.signal(number, self._old[number])
