"""One writer at a time: who writes into a shard directory, and since when.

What enters: a directory. What leaves: `.writer.json` in it, for as long as the run lasts. On a disk the file is locked,
and the system lets go of it when its process ends, however it ends. On an object store the file is put only if none is
there, and its writer writes it again every few seconds; one that does not, while another watches, counts as dead.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, BinaryIO, Self

from common.errors import UserError
from common.storage import Location

WRITER_NAME = ".writer.json"
BEAT_S, SILENCE_S, WATCH_S = 5.0, 20.0, 1.0


class Writer:
    """Holds a directory while a `with` block lasts.

    Raises:
        UserError: somebody else holds it, or it cannot be written.
    """

    def __init__(self, out: Location, tell: Callable[[str], None] = lambda sentence: None):
        self.out = out
        self.tell = tell
        self.place = out / WRITER_NAME
        self.is_new = not out.exists()
        self._file: BinaryIO | None = None
        self._stopped = threading.Event()
        self._beating: threading.Thread | None = None
        self._token = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"

    def __enter__(self) -> Self:
        if self.out.is_file():
            raise UserError(f"--out {self.out}: expected a directory, found a file. Give another path.")
        if self.out.local is not None:
            self._lock()
        else:
            self._lease()
        return self

    def _content(self, since: str | None = None) -> bytes:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        value = {"host": socket.gethostname(), "pid": os.getpid(), "since": since or now, "token": self._token}
        return json.dumps({**value, "alive": time.time()}).encode()

    def _refuse(self, held: dict[str, Any]) -> None:
        who = f"process {held.get('pid')} on {held.get('host')}, since {held.get('since')}"
        raise UserError(
            f"--out {self.out}: another run writes into it ({who}). Wait for it or end it, or give another directory."
        )

    def _lock(self) -> None:
        import fcntl

        assert self.place.local is not None
        while True:
            try:
                self.out.make_dir()
                file = open(self.place.local, "a+b")  # noqa: SIM115 (held until __exit__)
            except OSError as error:
                raise UserError(
                    f"--out {self.out}: cannot be written ({error.strerror}). Give another directory."
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                held = _parse(file.read())
                file.close()
                self._refuse(held)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.place.local)):
                    break
            file.close()  # its holder has removed it meanwhile
        file.truncate(0)
        file.write(self._content())
        file.flush()
        self._file = file

    def _lease(self) -> None:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        seen: tuple[bytes, float] | None = None
        while not self._is_first(since, took_over=seen is not None):
            try:
                data = self.place.read_bytes()
            except FileNotFoundError:
                continue
            # Clocks of two machines differ: what counts is whether the file changes while one watches it.
            if seen is None:
                seen = (data, time.monotonic())
                held = _parse(data)
                self.tell(
                    f"{self.out}: process {held.get('pid')} on {held.get('host')} has written into it since "
                    f"{held.get('since')}; looking for {SILENCE_S:.0f} s whether it still does."
                )
            elif seen[0] != data:
                self._refuse(_parse(data))
            elif time.monotonic() - seen[1] > SILENCE_S:
                self.place.delete()
                continue
            time.sleep(WATCH_S)

        def beat() -> None:
            while not self._stopped.wait(BEAT_S):
                with suppress(Exception):  # the next one may succeed
                    self.place.write_bytes(self._content(since))

        self._beating = threading.Thread(target=beat, name="writer", daemon=True)
        self._beating.start()

    def _is_first(self, since: str, took_over: bool) -> bool:
        """Put the file if none is there; after taking over, look whether another one took over at the same time."""
        if not self.place.create(self._content(since)):
            return False
        if took_over:
            time.sleep(2 * WATCH_S)
            with suppress(FileNotFoundError):
                return _parse(self.place.read_bytes()).get("token") == self._token
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._beating is not None:
            self._beating.join()  # a put on its way would bring the file back
        self.place.delete()
        if self._file is not None:
            self._file.close()
        if self.is_new and self.out.local is not None:
            with suppress(OSError):
                self.out.local.rmdir()  # nothing was written; a directory with files stays


def _parse(data: bytes) -> dict[str, Any]:
    try:
        return json.loads(data)
    except ValueError:
        return {}
