"""PyTorch's steps in a process of their own.

Neither library then disturbs the threads of the other, and PyTorch has the allocator that its users
have: the huge pages that our program asks for are not inherited.
"""

import multiprocessing
import os
from typing import Any


class Peer:
    """A `peer.Runner` in another process; its arguments are those of `peer.Runner`.

    Attributes:
        peak_bytes: as there.

    Raises:
        RuntimeError: it does not run; the message says why.
    """

    def __init__(self, *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, arguments), daemon=True)
        tunables = os.environ.pop("GLIBC_TUNABLES", None)
        try:
            self._process.start()
        finally:
            if tunables is not None:
                os.environ["GLIBC_TUNABLES"] = tunables
        theirs.close()
        self.peak_bytes = self._answer()

    def run(self, count: int) -> None:
        """Does `count` steps and waits for the last one."""
        self._pipe.send(count)
        self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()

    def _answer(self) -> Any:
        try:
            worked, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process ended with code {self._process.exitcode}") from None
        if not worked:
            raise RuntimeError(value)
        return value


def _serve(pipe, arguments: tuple) -> None:
    try:
        from mmcl_jax.bench import peer

        runner = peer.Runner(*arguments)
        runner.warm_up()
        pipe.send((True, runner.peak_bytes))
        while True:
            runner.run(pipe.recv())
            pipe.send((True, None))
    except EOFError:
        return
    except Exception as error:  # whatever a compiler says goes into the table
        pipe.send((False, " ".join(f"{type(error).__name__}: {error}".split())[:200]))
