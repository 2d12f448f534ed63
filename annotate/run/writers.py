"""One writer at a time: who writes into a shard directory, and since when.

What enters: a directory. What leaves: `.writer.json` in it, for as long as the run lasts. On a disk the file is locked,
and the system lets go of it when its process ends, however it ends. On an object store the file is put only if none is
there, and its writer says every few seconds that it is alive; a writer that has been silent for longer counts as dead.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, BinaryIO, Self

from common.errors import UserError
from common.storage import Location

WRITER_NAME = ".writer.json"
BEAT_S, SILENCE_S = 10.0, 60.0


class Writer:
    """Holds a directory while a `with` block lasts.

    Raises:
        UserError: somebody else holds it, or it cannot be written.
    """

    def __init__(self, out: Location):
        self.out = out
        self.place = out / WRITER_NAME
        self.is_new = not out.exists()
        self._file: BinaryIO | None = None
        self._stopped = threading.Event()
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
        while not self.place.create(self._content(since)):
            try:
                data = self.place.read_bytes()
            except FileNotFoundError:
                continue
            held = _parse(data)
            # Clocks of two machines differ: what counts is whether the file changes while one watches it.
            if time.time() - held.get("alive", 0.0) < SILENCE_S:
                self._refuse(held)
            if seen is None or seen[0] != data:
                seen = (data, time.monotonic())
            elif time.monotonic() - seen[1] > 2 * BEAT_S:
                self.place.delete()
                continue
            time.sleep(1.0)

        def beat() -> None:
            while not self._stopped.wait(BEAT_S):
                with suppress(Exception):  # the next one may succeed
                    self.place.write_bytes(self._content(since))

        threading.Thread(target=beat, name="writer", daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
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
