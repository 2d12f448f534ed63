"""One run of a sweep: a `train run` process of its own, from its start to what it leaves.

What enters: a `Job`, on whatever machine Ray has chosen. What leaves: an `Outcome`; in the run's directory a finished
run, or `failed.json`; and in `log.txt` everything that the process has said, attempt after attempt.

The log is also the lock of the run's directory: its open file is the process's own output and carries the kernel's
lock, so whoever could still write beside a new attempt (a process left over from a sweep that was killed, or one of its
children) holds it, and the new attempt waits. Jobs are safe to repeat: Ray may start one again when a machine is lost.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.files import write_json
from train.sweeps.state import FAILED_NAME, LOG_NAME, now, remove_what_is_not_kept, run_state
from train.sweeps.warm import WarmProcess

TAIL_LINES = 20
LOCK_WAIT_S = 60.0  # what a process of a killed sweep may take to end
POLL_S = 0.5
END_WAIT_S = 10.0  # from SIGTERM to SIGKILL
PASSED_ON = ("HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "WANDB_API_KEY", "SFT_GO_DATA_HOME")

_warm: WarmProcess | None = None  # of this worker of Ray, from one run to the next


@dataclass(frozen=True)
class Job:
    """What one run needs; goes over the wire."""

    name: str
    directory: str
    words: list[str]  # of `train run`
    keep: str
    cwd: str
    environment: dict[str, str] | None  # of the sweep's own process; None: of the node where the run is placed
    num_threads: int | None  # for CPU work; None: the node's processors over `runs_per_node`
    runs_per_node: int = 1
    warm: bool = False  # fork it from a process that has imported everything; for CPUs


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: int  # 0 for success, negative for a signal
    tail: list[str]  # the last lines, of a failed run
    wall_s: float
    problem: str | None = None  # what else went wrong: failed.json could not be written, say


def run_job(job: Job) -> Outcome:
    """Run a job to its end; an exception (Ray's cancellation) ends the process too."""
    directory = Path(job.directory)
    started = time.monotonic()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        log = open(directory / LOG_NAME, "ab", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        return Outcome(1, [f"{directory}: {error.strerror}"], 0.0, f"{directory}: {error.strerror}")
    with log:
        if not _lock(log, LOCK_WAIT_S):
            holders = ", ".join(map(str, _holders(directory / LOG_NAME))) or "on another machine"
            line = f"{directory}: still held after {LOCK_WAIT_S:.0f} s by a process of an earlier attempt ({holders})."
            return _failed(directory, 1, [line], started)
        if run_state(directory) == "finished":  # a job that Ray repeats
            remove_what_is_not_kept(directory, job.keep)
            return Outcome(0, [], time.monotonic() - started)
        try:
            (directory / FAILED_NAME).unlink(missing_ok=True)
            log.write(f"--- {now()} on {socket.gethostname()}: train run {' '.join(job.words)}\n".encode())
            start = log.tell()
            status = _run_forked(job, log) if job.warm else _run_anew(job, log)
        except OSError as error:
            return _failed(directory, 1, [str(error)], started)
        if status == 0 and run_state(directory) == "finished":
            remove_what_is_not_kept(directory, job.keep)
            return Outcome(0, [], time.monotonic() - started)
        lines = tail(directory / LOG_NAME, TAIL_LINES, start)
        if status == 0:
            status, lines = 1, [*lines, "it ended without an error and without run.json"]
        elif status < 0:
            lines.append(f"ended by signal {-status} ({signal.Signals(-status).name})")
        elif not lines:
            lines.append(f"it ended with status {status} and wrote nothing")
        return _failed(directory, status, lines, started)


def _run_anew(job: Job, log: IO[bytes]) -> int:
    """Start the process and wait for it; its whole group ends with it, and with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "train.sweeps.launcher", str(os.getpid()), *job.words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=job.cwd,
        env=_environment(job),
        start_new_session=True,
    )
    try:
        while True:  # in short waits: what Ray raises here comes between them
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=POLL_S)
    finally:
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=END_WAIT_S)
        _signal_group(process.pid, signal.SIGKILL)  # what it may have left in its group
        process.wait()


def _run_forked(job: Job, log: IO[bytes]) -> int:
    """Have the process forked from one that has imported everything, and wait for it; the same of its group."""
    global _warm
    environment = _environment(job)
    if _warm is None or not _warm.is_alive or _warm.environment != environment:
        if _warm is not None:
            _warm.end()
        _warm = WarmProcess(environment)
    pid = None
    try:
        _warm.start(job.words, job.cwd, log)
        while True:
            answer = _warm.answer(POLL_S) or {}
            pid = answer.get("pid", pid)
            if "status" in answer:
                return answer["status"]
    except (EOFError, BrokenPipeError):  # it was killed, and its run with it
        log.write(b"the process that starts runs has ended\n")
        return _warm.process.wait() or 1
    except BaseException:
        if pid is not None:
            _signal_group(pid, signal.SIGTERM)
        _warm.end()
        raise
    finally:
        if pid is not None:
            _signal_group(pid, signal.SIGKILL)


def _environment(job: Job) -> dict[str, str]:
    """Return the environment that `train run` would have in a shell, with the GPUs that Ray chose."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = dict(here if job.environment is None else job.environment)
    if job.environment is None:
        environment.pop("OMP_NUM_THREADS", None)  # Ray's, one a CPU that the job has taken
    if job.environment is None or "OMP_NUM_THREADS" not in environment:
        num_threads = job.num_threads or max(1, (os.cpu_count() or 1) // job.runs_per_node)
        environment["OMP_NUM_THREADS"] = str(num_threads)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if name in here:
            environment[name] = here[name]
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        environment.pop(name, None)
    return environment


def _failed(directory: Path, status: int, lines: list[str], started: float) -> Outcome:
    try:
        write_json(directory / FAILED_NAME, {"status": status, "tail": lines, "at": now()})
        problem = None
    except OSError as error:  # a full disk
        problem = f"{directory / FAILED_NAME}: could not be written ({error.strerror})"
    return Outcome(status, lines, time.monotonic() - started, problem)


def _lock(log: IO[bytes], wait_s: float) -> bool:
    """Take the lock of a log; a process that is about to end may hold it for a while."""
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.2)


def _holders(path: Path) -> list[int]:
    """Return the other processes of this machine that have a file open (Linux)."""
    wanted = path.stat()
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            is_it = os.path.samestat(entry.stat(), wanted)
        except OSError:
            continue
        if is_it and (number := int(entry.parts[2])) != os.getpid():
            found.append(number)
    return sorted(set(found))


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def tail(path: Path, num_lines: int, start: int = 0, window: int = 32_768) -> list[str]:
    """Return the last lines of a file that may be large and in the middle of a line; from byte `start` on."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - window))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]  # a bar's last state
    return [line for line in lines if line][-num_lines:]
