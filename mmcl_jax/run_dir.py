"""The run directory: what was run, on what, and what came out.

config.json        the whole configuration
environment.json   versions, devices, git revision, command line
metrics.jsonl      one line per logged step, all stages
stages/<name>/     checkpoints/ and, once the stage is done, done.json
non_finite_batch.json  records of the step whose loss was no number, where that happened
.lock              held by the run that writes here
evaluate/ interpret/ report/
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import jax

from mmcl_jax.retry import retry, say

_LOCK = ".lock"
PACKAGES = ("mmcl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunInUse(OSError):
    """Another run writes to the run directory."""


class RunDir:
    """Paths and small files of one run."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        # A file that is there as long as the file system is.
        self._known = self.path

    def stage(self, name: str) -> pathlib.Path:
        return self.path / "stages" / name

    def reach(self) -> None:
        """Waits where the file system is gone: its files are not missing then.

        Raises:
            OSError: it does not come back.
        """
        retry(self._known.stat, f"reaching {self.path}")

    def make(self, name: str) -> pathlib.Path:
        """A folder of the run, made where it is not there.

        Raises:
            OSError: the run directory is not there; it is waited for.
        """
        folder = self.path / name

        def make() -> None:
            # Else it would be made below the mount point of a file system that has gone.
            self._known.stat()
            folder.mkdir(parents=True, exist_ok=True)

        retry(make, f"making {folder}")
        return folder

    def make_stage(self, name: str) -> pathlib.Path:
        """The folder of a stage, as `make` makes it."""
        return self.make(f"stages/{name}")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run directory; of several processes of one run, the first one does.

        The system releases it when the process ends, in whatever way.

        Raises:
            RunInUse: another process holds it, on this machine or another one.
        """
        if jax.process_index() != 0:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise RunInUse(_in_use(self.path, file)) from error
                # NFS without its lock service, Lustre mounted without `flock`.
                say(f"{self.path}: no lock ({error}); start no second run here")
            file.truncate(0)
            file.write(json.dumps(_this_process()) + "\n")
            file.flush()
            self._known = self.path / _LOCK
            try:
                yield
            finally:
                self._known = self.path
                file.truncate(0)

    def read_config(self) -> dict[str, Any]:
        """Raises FileNotFoundError where `path` is no run directory."""
        file = self.path / "config.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{self.path} is no run directory (it has no config.json); give the --workdir of "
                "a run of mmcl_jax.main"
            )
        return json.loads(file.read_text())

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json and environment.json; files that would not change stay untouched."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        file = self.path / "config.json"
        if file.is_file() and file.read_text() == text:
            return
        write_atomically(file, text)
        environment = json.dumps(describe_environment(), indent=2) + "\n"
        write_atomically(self.path / "environment.json", environment)

    def done(self, stage: str) -> dict[str, Any] | None:
        """What done.json says of a finished stage; None while it is not finished."""
        file = self.stage(stage) / "done.json"
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}: not JSON ({error}). Delete it: the stage then goes on from its last "
                "checkpoint"
            ) from error

    def mark_done(self, stage: str, summary: Mapping[str, Any]) -> None:
        text = json.dumps(summary, indent=2, sort_keys=True) + "\n"
        write_atomically(self.make_stage(stage) / "done.json", text)


class MetricsWriter:
    """Appends to metrics.jsonl and, where asked for, to TensorBoard and Weights & Biases.

    Args:
        run: where to write.
        stage: written into each line.
        resume_step: lines of this stage after this step are dropped first: they belong to steps
            that are taken again.
        evaluation_due: the evaluation of `resume_step` is made again too.
        tensorboard: also write event files, to RUN/tensorboard/<stage>.
        wandb: `enabled`, and `project`, `entity`, `mode` of `wandb.init`, empty for its defaults.
    """

    def __init__(
        self,
        run: RunDir,
        stage: str,
        *,
        resume_step: int = 0,
        evaluation_due: bool = False,
        tensorboard: bool = False,
        wandb: Mapping[str, Any] | None = None,
    ):
        self._file = run.path / "metrics.jsonl"
        self._stage = stage
        self._main = jax.process_index() == 0
        self._board = self._wandb = None
        if not self._main:
            return
        _drop_lines(self._file, stage, resume_step, evaluation_due)
        if tensorboard:
            self._board = _start_tensorboard(run, stage, resume_step)
        if wandb and wandb["enabled"]:
            self._wandb = _start_wandb(run, stage, wandb)

    def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        if not self._main:
            return
        line = {"stage": self._stage, "step": step, "epoch": round(epoch, 4), "time": time.time()}
        text = json.dumps({**line, **values}) + "\n"
        append_line(self._file, text)
        for name, value in values.items():
            if self._board:
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def describe_environment() -> dict[str, Any]:
    """Versions, devices, source revision and command line of this process."""
    return {
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "git_revision": _git_revision(),
    }


def write_atomically(file: pathlib.Path, text: str) -> None:
    """A reader sees the old file or the whole new one. Of several processes, the first writes.

    Args:
        file: in a folder that is there.
    """
    if jax.process_index() != 0:
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}")

    def write() -> None:
        with temporary.open("w") as opened:
            opened.write(text)
            opened.flush()
            # Else a machine that loses its power may leave the new name and no content.
            os.fsync(opened.fileno())
        temporary.replace(file)

    retry(write, f"writing {file}")


def append_line(file: pathlib.Path, text: str) -> None:
    """Adds a line, once and whole, to a file that nobody else writes.

    Args:
        text: ends with a newline; no other line of the file is the same.
    """
    data = text.encode()

    def append() -> None:
        with file.open("a+b") as lines:
            size = lines.seek(0, os.SEEK_END)
            lines.seek(max(size - len(data), 0))
            last = lines.read()
            if last == data:
                # An attempt that failed had written it.
                return
            if last and not last.endswith(b"\n"):
                # An attempt that failed, or a run that was killed, had written half a line.
                lines.truncate(size - len(last) + last.rfind(b"\n") + 1)
            lines.write(data)

    retry(append, f"writing {file}")


def _this_process() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since}


def _in_use(path: pathlib.Path, file: IO[str]) -> str:
    """Who holds the run directory."""
    try:
        file.seek(0)
        found = json.loads(file.read())
        who = f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        # It took the lock a moment ago.
        who = "another process"
    return f"{path} is in use by {who}. Wait until it has ended, end it, or use another --workdir"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    """One line for each field in which two configurations differ."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        path = f"{prefix}{key}"
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{path}.")
        elif before != after:
            lines.append(f"{path}: {before!r} then, {after!r} now")
    return lines


def _drop_lines(file: pathlib.Path, stage: str, after_step: int, evaluation_due: bool) -> None:
    if not file.is_file():
        return
    kept, dropped = [], False
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            # The last line of a run that was killed while writing it.
            dropped = True
            continue
        again = evaluation_due and any(name.startswith("val/") for name in line)
        if line["stage"] == stage and line["step"] > after_step - again:
            dropped = True
        else:
            kept.append(text + "\n")
    if dropped:
        write_atomically(file, "".join(kept))


def _start_tensorboard(run: RunDir, stage: str, resume_step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(
            'writers.tensorboard needs tensorboardX: pip install "mmcl_jax[tensorboard]"'
        ) from error
    folder = run.path / "tensorboard" / stage
    # Points of steps that are taken again are hidden.
    return SummaryWriter(str(folder), purge_step=resume_step + 1)


def _start_wandb(run: RunDir, stage: str, settings: Mapping[str, Any]):
    try:
        import wandb
    except ImportError as error:
        raise ValueError('writers.wandb needs wandb: pip install "mmcl_jax[wandb]"') from error
    identity = f"{run.path.resolve()}/{stage}"
    return wandb.init(
        # The same run after an interruption.
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        dir=str(run.path),
        group=run.path.name,
        name=f"{run.path.name}/{stage}",
        config=run.read_config(),
        resume="allow",
        # What is printed may name records, and would be sent.
        settings={"console": "off"},
        **{name: settings[name] or None for name in ("project", "entity", "mode")},
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git_revision() -> str:
    folder = pathlib.Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
