"""The ``pancrafter`` command in this process, its words given as they come."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from pancrafter import cli


def call(*words: object, env: dict[str, str] | None = None) -> Result:
    """What a command printed and returned; a defect raises."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(code: int, *words: object, env: dict[str, str] | None = None) -> str:
    """The only line a failing command prints."""
    result = call(*words, env=env)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def parsed(*words: object) -> Any:  # Any: parsed JSON
    """What a command that succeeds prints as JSON."""
    result = call(*words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
