"""The ``pancrafter`` command: options in, records of the library out, as text, tables or JSON.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done or nothing to do, 1 something about the input
or a scene, 2 nothing could be done (options, source, sink, weights), 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
Heavy libraries are imported by the command that needs them. One module per group of commands; each registers its
commands when imported here.
"""

import os
import sys

# in order of the help
from pancrafter.cli import (  # noqa: F401
    archive,
    bench,
    evaluation,
    feed,
    files,
    held,
    ledger,
    models,
    operations,
    pipeline,
    sensors,
    training,
    upkeep,
)
from pancrafter.cli.app import app
from pancrafter.cli.shared import INTERRUPTED
from pancrafter.heap import collect_less_often, keep_freed_memory, leave_cores_soon
from pancrafter.options import print_all_characters

__all__ = ["app", "main"]


def main() -> None:
    """The command. Interrupted, it waits for no thread: one whose start was interrupted would never end."""
    keep_freed_memory()
    collect_less_often()
    leave_cores_soon()
    print_all_characters()
    try:
        app()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code in INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise
