"""The ``planner`` command. Each command imports torch, and the library, only when it runs."""

from __future__ import annotations

import sys

EXIT_DIFFERENT = 1
EXIT_BAD_INPUT = 2


def main() -> None:
    """Run the command line; exit 0 on success, 1 where `planner diff` finds a difference, 2 on bad input."""
    from planner.cli.commands import app
    from planner.errors import PlannerError

    try:
        app()
    except PlannerError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except ModuleNotFoundError as error:
        from planner.extras import missing

        named = missing(error, "this command")
        if named is None:
            raise
        print(named, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
