"""The child: one process in which a slot runs experiments, one after the other.

Run by path, in an interpreter of the user's (3.9 or newer) that need not have this package: standard library only,
and of the package nothing but what this file's neighbours and `result_processor` need. Usage: child.py FD DAEMON_PID
"""

# ruff: noqa: PTH100, PTH118, PTH120, PTH123
# Paths are plain text here: a child without pathlib is smaller.

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyexp_daemon.result_processor import LogRow
    from pyexp_daemon.worker.channel import Message
    from pyexp_daemon.worker.emissions import Emissions
    from pyexp_daemon.worker.function import Function
    from pyexp_daemon.worker.pickled import Pickled

_PR_SET_PDEATHSIG = 1
_OOM_SCORE_RAISE = 500
_LONGEST_ERROR = 256 * 1024
_ENVELOPE_BYTES = 16 * 1024

_libc = ctypes.CDLL(None)
_c_stdout = ctypes.c_void_p.in_dll(_libc, "stdout")


def find_own_package() -> None:
    """Make `pyexp_daemon` this file's package, whatever the interpreter has installed; `sys.path` stays the user's."""
    import importlib.util

    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]
    if "pyexp_daemon" in sys.modules:
        return
    package = os.path.dirname(here)
    spec = importlib.util.spec_from_file_location(
        "pyexp_daemon", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["pyexp_daemon"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main() -> None:
    """Serve the daemon on the other side of the channel until it closes it."""
    fd, daemon_pid = int(sys.argv[1]), int(sys.argv[2])
    die_with(daemon_pid)
    set_up_signals()
    be_first_when_memory_runs_out()
    Child(socket.socket(fileno=fd)).serve()


def die_with(daemon_pid: int) -> None:
    """Ask the kernel to kill this process when its daemon dies, and end if that has happened already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != daemon_pid:
        os._exit(1)


def set_up_signals() -> None:
    """Give the function the signals of a program just started; an interrupt at the terminal is the daemon's."""
    from pyexp_daemon.worker import channel

    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable(file=2)
    faulthandler.register(channel.DUMP_SIGNAL, file=2, all_threads=True)


def be_first_when_memory_runs_out() -> None:
    """Let the kernel kill experiments before their daemon."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as score:
            raised = min(int(score.read()) + _OOM_SCORE_RAISE, 1000)
            score.seek(0)
            score.write(str(raised))
    except (OSError, ValueError):
        return


class Child:
    """Loads the function, then runs it for every experiment that the daemon sends."""

    def __init__(self, connection: socket.socket) -> None:
        connection.set_inheritable(False)
        self._line = Line(connection)
        self._meter = Meter()
        self._order: Message = {}
        self._pickled: Pickled | None = None
        self._store: Callable[[], Mapping[str, Any]] | None = None
        self._emissions: Emissions | None = None

    def serve(self) -> None:
        """Do what the daemon says until it closes the channel."""
        self._order = self._line.next_order() or {}
        if not self._order:
            return
        self._line.allow(self._order["max_message_bytes"])
        function = self._load()
        output = Output()
        while function is not None and (message := self._line.next_order()) is not None:
            if message["kind"] == "run":
                output.restore()
                self._run(function, message)

    def _load(self) -> Function | None:
        try:
            os.chdir(self._order["project"])
            function = self._find_function(self._order["project"])
            self._store = self._make_store(self._order["project"])
        except BaseException as error:  # noqa: BLE001 the user's module may raise anything
            message = f"{type(error).__name__}: {error}" if type(error).__module__ == "builtins" else str(error)
            hint = getattr(error, "hint", None)
            self._line.send({"kind": "broken", "message": message, "hint": hint, "traceback": describe(error)})
            return None
        if self._order.get("codecarbon") is not None:
            from pyexp_daemon.worker.emissions import Emissions

            self._emissions = Emissions(self._order["codecarbon"])
        cpu_seconds = cpu_seconds_so_far()
        self._line.send({"kind": "ready", "file": function.source_file, "cpu_total": cpu_seconds, **self._trouble()})
        return function

    def _find_function(self, project: str) -> Function:
        from pyexp_daemon.worker.function import Function

        if self._order["pickled"] is None:
            return Function.imported(self._order["function"], project=project)
        from pyexp_daemon.worker.pickled import Pickled

        self._pickled = Pickled(self._order["pickled"])
        return self._pickled.function(project=project)

    def _make_store(self, project: str) -> Callable[[], Mapping[str, Any]] | None:
        from pyexp_daemon.worker.function import make_store

        if self._order["store"] is None:
            return None
        store = make_store(self._order["store"], project=project, custom=self._custom_fields())
        return lambda: store

    def _run(self, function: Function, order: Message) -> None:
        """Run one experiment and report it; whatever the function does ends up in the report."""
        recorder = ChannelRecorder(self._line, order["experiment_id"])
        self._meter.start()
        report = self._call(function, order, recorder)
        used = self._meter.read()
        emissions = {} if self._emissions is None else {"emissions": self._emissions.stop()}
        flush_output()
        self._line.send({"kind": "finished", **report, **used, **emissions, **self._trouble()})

    def _trouble(self) -> Message:
        trouble = None if self._emissions is None else self._emissions.take_trouble()
        return {} if trouble is None else {"emissions_trouble": trouble}

    def _custom_fields(self) -> Any:
        """A fresh copy: what one experiment does to it, no other sees."""
        from pyexp_daemon.worker import channel

        return self._pickled.custom() if self._pickled else channel.loads(self._order["custom"])

    def _call(self, function: Function, order: Message, recorder: ChannelRecorder) -> Message:
        from pyexp_daemon import exceptions
        from pyexp_daemon.result_processor import ResultProcessor

        processor = ResultProcessor(
            recorder,
            experiment_id=order["experiment_id"],
            attempt=order["attempt"],
            resultfields=self._order["resultfields"],
            logtables=self._order["logtables"],
            workdir=order["workdir"],
            store=self._store,
            ends=recorder.ends,
        )
        try:
            os.chdir(self._order["project"])
            if self._emissions is not None:
                self._emissions.start()
            returned = call_in_this_process(function, order["keyfields"], processor, self._custom_fields())
            report = judge(returned, processor)
            processor.close()
            recorder.raise_late_refusal()
            self._line.check_size(report["results"])
        except exceptions.LeaseLost as error:
            processor.close()
            return {"outcome": "superseded", "error": describe(error), "results": {}}
        except BaseException as error:  # noqa: BLE001 the user's function may raise anything, SystemExit too
            processor.close()
            return {"outcome": "error", "error": describe(error), "results": {}}
        return report


def call_in_this_process(function: Function, *arguments: Any) -> Any:
    """Call the function; a copy of this process that it forked ends here, and never speaks to the daemon."""
    pid = os.getpid()
    try:
        return function(*arguments)
    finally:
        if os.getpid() != pid:
            leave_fork(sys.exc_info()[1])


def leave_fork(error: BaseException | None) -> None:
    """End a forked copy of this process as a program ends."""
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.stderr.write(describe(error))
    flush_output()
    os._exit(code)


def judge(returned: Any, processor: Any) -> Message:
    """What a returned value means: outcome, and the results that came with it.

    Raises:
        ValueError: it means nothing.
    """
    from pyexp_daemon.experiment_status import ExperimentStatus

    if isinstance(returned, dict):
        return {"outcome": "done", "error": None, "results": processor.checked_results(returned)}
    if returned is None:
        returned = ExperimentStatus.DONE
    if isinstance(returned, ExperimentStatus) and returned.value in ("done", "error", "paused"):
        return {"outcome": returned.value, "error": None, "results": {}}
    if returned is ExperimentStatus.CREATED:  # again please
        return {"outcome": "released", "error": None, "results": {}}
    raise ValueError(
        f"invalid return value of type {type(returned).__name__}:"
        " return None, a dict of results, or ExperimentStatus.DONE, ERROR, PAUSED or CREATED"
    )


class ChannelRecorder:
    """Hands what one experiment has to say to the daemon; a refusal by the daemon is raised here."""

    def __init__(self, line: Line, experiment_id: int) -> None:
        self._line = line
        self._experiment_id = experiment_id
        self._has_sent_logs = False
        self._listens = False
        self._pid = os.getpid()

    def send_results(self, results: dict[str, Any]) -> None:
        """Store the results; return when the daemon holds them durably, raise what it refuses them with."""
        self.raise_late_refusal()
        self._line.check_size(results)
        self._ask({"kind": "results", "results": results})

    def send_snapshot(self, state_id: str, part: int, data: bytes, head: dict[str, Any] | None) -> None:
        """Store a part of a snapshot's state; return when the daemon holds it durably."""
        self.raise_late_refusal()
        self._ask({"kind": "snapshot", "state_id": state_id, "part": part, "data": data, "head": head})

    def look_up(self, what: str, arguments: dict[str, Any]) -> Any:
        """What the database has."""
        return self._ask({"kind": "look_up", "what": what, "arguments": arguments})

    def send_logs(self, rows: list[LogRow]) -> None:
        """Send log rows, in as many messages as they need."""
        from pyexp_daemon.worker import channel

        self._has_sent_logs = True
        try:
            self._line.send({"kind": "logs", "experiment_id": self._experiment_id, "rows": rows})
        except channel.MessageTooLong as error:
            if len(rows) == 1:
                raise ValueError(f"a row of logtable {rows[0][0]} is too long: {error}") from error
            half = len(rows) // 2
            self.send_logs(rows[:half])
            self.send_logs(rows[half:])

    def send_progress(self, fraction: float | None, description: str | None) -> None:
        """Send how far the experiment is."""
        self._line.send(
            {
                "kind": "progress",
                "experiment_id": self._experiment_id,
                "fraction": fraction,
                "description": description,
            }
        )

    def should_stop(self) -> bool:
        """Whether the daemon asked this child to come to an end; who looks will be given time for it."""
        if not self._listens:
            self._listens = True
            self._line.send({"kind": "listens", "experiment_id": self._experiment_id})
        self._line.look()
        return self._line.told_to_stop

    def ends(self) -> float | None:
        """When the node ends all of it, as the daemon said last; a forked copy of this process hears no more."""
        if os.getpid() == self._pid:
            self._line.look()
        return self._line.ends

    def raise_late_refusal(self) -> None:
        """Raise what the daemon refused log rows with, if anything: those were not waited for."""
        if self._has_sent_logs:
            self._line.look()
        refusal = self._line.take_refusal()
        if refusal is not None:
            raise self._exception(refusal)

    def _ask(self, question: Message) -> Any:
        """What the daemon answers; a refusal is raised."""
        answer = self._line.ask({**question, "experiment_id": self._experiment_id})
        if answer["kind"] == "refused":
            raise self._exception(answer)
        return answer.get("answer")

    def _exception(self, refusal: Message) -> Exception:
        from pyexp_daemon import exceptions

        kind = getattr(exceptions, refusal["error"], exceptions.DatabaseError)
        if kind is exceptions.LeaseLost:
            return exceptions.LeaseLost(self._experiment_id)
        return kind(refusal["message"])


class Line:
    """The child's end of the channel: blocking, shared by the threads of the function."""

    def __init__(self, connection: socket.socket) -> None:
        import threading

        from pyexp_daemon.worker import channel

        self.limit_bytes = channel.MAX_MESSAGE_BYTES
        self.told_to_stop = False
        self.ends: float | None = None
        self._connection = connection
        self._encode = channel.encode
        self._frames = channel.FrameBuffer()
        self._receive_bytes = channel.RECEIVE_BYTES
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._questions = 0
        self._orders: list[Message] = []
        self._answer: Message | None = None
        self._late_refusal: Message | None = None

    def next_order(self) -> Message | None:
        """The next thing to do; None when the daemon has closed the channel."""
        with self._receiving:  # threads that an earlier experiment left behind may still ask, or look
            while not self._orders:
                if not self._receive():
                    return None
            return self._orders.pop(0)

    def send(self, message: Message) -> None:
        """Send a message; wait while the daemon is behind.

        Raises:
            MessageTooLong: nothing was sent.
            OSError: the daemon is gone.
        """
        frame = self._encode(message, limit_bytes=self.limit_bytes)
        with self._sending:
            self._connection.sendall(frame)

    def ask(self, question: Message) -> Message:
        """Send a question and wait for its answer: that it is stored, what was found, or a refusal."""
        with self._receiving:
            self._questions += 1
            number = self._questions
            self.send({**question, "number": number})
            while self._answer is None or self._answer["number"] != number:
                if not self._receive():
                    raise ConnectionResetError("the daemon has closed the channel")
            return self._answer

    def look(self) -> None:
        """Take note of what the daemon has said meanwhile, without waiting."""
        if not self._receiving.acquire(blocking=False):
            return  # another thread is reading, and takes note
        try:
            self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        finally:
            self._receiving.release()

    def allow(self, limit_bytes: int) -> None:
        """Set the length of the longest message, in both directions."""
        self.limit_bytes = limit_bytes
        self._frames.limit_bytes = limit_bytes

    def take_refusal(self) -> Message | None:
        """The refusal of log rows noted last, which is then forgotten."""
        refusal, self._late_refusal = self._late_refusal, None
        return refusal

    def check_size(self, results: dict[str, Any]) -> None:
        """Make sure that results fit into a message.

        Raises:
            ValueError: they do not; the text names the largest field and its size.
        """
        room_bytes = self.limit_bytes - _ENVELOPE_BYTES
        if self._size_bytes(results) > room_bytes:
            name = max(results, key=lambda field: self._size_bytes({field: results[field]}))
            size_bytes = self._size_bytes({name: results[name]})
            raise ValueError(f"result field {name} is too long: {size_bytes} bytes, and a message has {room_bytes}")

    def _size_bytes(self, results: dict[str, Any]) -> int:
        """What they take in a message; 0 when that is too little to be worth a count."""
        from pyexp_daemon.worker import channel

        letters = sum(len(value) for value in results.values() if isinstance(value, (str, bytes)))
        if 6 * letters + 1024 * len(results) < self.limit_bytes - _ENVELOPE_BYTES:  # a letter takes six bytes at most
            return 0
        try:
            return len(self._encode({"results": results}, limit_bytes=self.limit_bytes))
        except channel.MessageTooLong as error:
            return error.size_bytes

    def _receive(self, flags: int = 0) -> bool:
        """Take note of what comes next; False when the daemon has closed the channel."""
        data = self._connection.recv(self._receive_bytes, flags)
        self._frames.feed(data)
        while (message := self._frames.next()) is not None:
            self._note(message)
        return bool(data)

    def _note(self, message: Message) -> None:
        if message["kind"] == "stop":
            self.told_to_stop = True
        elif message["kind"] == "ends":
            self.ends = message["ends"]
        elif message["kind"] not in ("stored", "found", "refused"):
            self._orders.append(message)
            self.told_to_stop = False  # what was said before this is not meant for it
            self._late_refusal = None
        elif message["number"] is None:
            self._late_refusal = message
        else:
            self._answer = message


class Meter:
    """What one attempt uses: CPU time, its children's included, and the most memory this process held."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._cpu_before = 0.0
        try:
            self._peak_reset = os.open("/proc/self/clear_refs", os.O_WRONLY)
        except OSError:
            self._peak_reset = -1

    def start(self) -> None:
        """Begin to measure anew."""
        self._cpu_before = cpu_seconds_so_far()
        try:
            os.write(self._peak_reset, b"5")
        except OSError:
            return  # the kernel does not let us: the peak is that of the process's whole life

    def read(self) -> Message:
        """What was used since `start`."""
        status = os.pread(self._status, 8192, 0)
        cpu_total = cpu_seconds_so_far()
        return {
            "cpu_seconds": cpu_total - self._cpu_before,
            "cpu_total": cpu_total,
            "peak_rss_bytes": _status_bytes(status, b"VmHWM:"),
            "rss_bytes": _status_bytes(status, b"VmRSS:"),
        }


def _status_bytes(status: bytes, key: bytes) -> int | None:
    _, found, rest = status.partition(key)
    return int(rest.split(None, 1)[0]) * 1024 if found else None


def cpu_seconds_so_far() -> float:
    """CPU time of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def describe(error: BaseException) -> str:
    """The traceback as text, head and tail of it when it is very long; never fails."""
    import traceback

    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as worse:  # noqa: BLE001 an exception whose own text fails
        text = f"{type(error).__name__} (its traceback cannot be shown: {type(worse).__name__})"
    if len(text) > _LONGEST_ERROR:
        half = _LONGEST_ERROR // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    return text


class Output:
    """Where functions print, as it is now: one that closes or redirects it does not take it from those after it."""

    def __init__(self) -> None:
        self._kept = {"stdout": (1, os.dup(1), sys.stdout), "stderr": (2, os.dup(2), sys.stderr)}

    def restore(self) -> None:
        """Let the next function print as the first one could."""
        for name, (number, kept, stream) in self._kept.items():
            os.dup2(kept, number)
            if stream is not None and stream.closed:
                stream = open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
                self._kept[name] = number, kept, stream
            setattr(sys, name, stream)


def flush_output() -> None:
    """Push out what the function printed, so that it belongs to this attempt; C's stdout as well."""
    for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            continue
    _libc.fflush(_c_stdout)


find_own_package()  # here, so that processes which the function spawns, and which load this file again, find it too

if __name__ == "__main__":
    main()
