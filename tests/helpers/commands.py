"""Running the command line in this process."""

from __future__ import annotations

import pytest

from flairhub.cli import main


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of `flairhub <arguments>`."""
    code: object = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert isinstance(code, int | None)
    return int(code or 0), captured.out, captured.err


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Return exit code and standard error of a command that must fail, as it should: with a message of its own."""
    code, _, err = run_command(capsys, *arguments)
    assert code != 0
    assert "Unexpected" not in err
    assert "Traceback" not in err
    return code, err
