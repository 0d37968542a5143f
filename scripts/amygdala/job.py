"""The tail of an entry script: its log, and errors that a user can mend told in one line without a traceback."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from amygdala.errors import UserError, kept
from amygdala.files import FULL
from amygdala.recipes import read_sheet
from amygdala.stamps import using

Say = Callable[[str], None]


@contextlib.contextmanager
def job(snakemake: Any, aloud: bool = False, needs_input: bool = True) -> Iterator[Say]:
    """Give `say(line)`, which writes to the job's log (`aloud`: to the terminal too).

    Whatever else is printed goes to the log as well. Files of the store say what they are made from (stamps.py), by the recipes
    in the file that the parameter `recipes` names. A UserError ends the process with status 1 and one line, as does a file
    that the system does not let the job read or write. A job that needs input and has none was planned while all its outputs
    existed (rules/common.smk, unless_stored): if they still do, there is nothing to do.
    """
    path = snakemake.log[0] if len(snakemake.log) else None
    terminal = sys.stderr
    with _log(path) if path else contextlib.nullcontext(terminal) as log:
        try:
            if needs_input and not len(snakemake.input):
                _leave_stored(snakemake.output)
            _check_readable(snakemake.input)
            sheet = read_sheet(getattr(snakemake.params, "recipes", None))
            with contextlib.redirect_stderr(log), contextlib.redirect_stdout(log), using(sheet):
                yield lambda line: _say(line, log, terminal if aloud else None)
        except UserError as error:
            _tell_error(str(error), log, terminal)
        except PermissionError as error:
            _tell_error(str(kept(error.filename, error.strerror)), log, terminal)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                _tell_error(f"cannot write {error.filename or path}: {error.strerror}", log, terminal)
            if log is not terminal:
                traceback.print_exc(file=log)
            raise


@contextlib.contextmanager
def _log(path: str) -> Iterator[TextIO]:
    """The log, written line by line. What is left to write on a full disk is dropped."""
    log = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    try:
        yield log
    finally:
        with contextlib.suppress(OSError):
            log.close()


def _tell_error(message: str, log: TextIO, terminal: TextIO) -> NoReturn:
    """One line in the log, or on the terminal where the log's disk is full; then the process ends with status 1."""
    try:
        print(f"error: {message}", file=log)
    except OSError:
        print(f"error: {message}", file=terminal)
    sys.exit(1)


def _leave_stored(outputs: Iterable[str]) -> None:
    missing = [path for path in outputs if not Path(path).exists()]
    if missing:
        raise UserError(
            f"{missing[0]} was there when the run was planned, and is gone: run snakemake again, it will be rebuilt"
        )
    sys.exit(0)


def _check_readable(inputs: Iterable[str]) -> None:
    """UserError for a file that another user keeps to themselves; libraries tell of it as of one that is missing."""
    for path in inputs:
        if not os.access(path, os.R_OK) and Path(path).exists():
            raise kept(path)


def _say(line: str, log: TextIO, terminal: TextIO | None) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=log, flush=True)
    if terminal is not None and terminal is not log:
        print(f"  {line}", file=terminal, flush=True)
