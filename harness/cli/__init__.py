"""The command line: arguments, printing, exit codes. Nothing else in the harness prints."""

from __future__ import annotations

import os
import sys

from harness.cli.parser import make_parser
from harness.cli.shell import INTERRUPTED, PIPE_CLOSED
from harness.errors import HarnessError


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit code.

    0, 1 for a failure, 2 for wrong usage, 130 for an interruption, 141 where nobody reads what is printed.
    """
    parser = make_parser()
    arguments, others = parser.parse_known_args(argv)
    if others and "rest" not in arguments:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:  # argparse leaves an option that comes first out of what is passed on
        arguments.rest = [*others, *arguments.rest]
    if arguments.run is None:
        parser.print_help()
        return 0
    try:
        return int(arguments.run(arguments) or 0)
    except HarnessError as error:
        sys.stdout.flush()
        print(f"error: {error.problem}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `harness studies | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:  # no space, no permission, a file where a folder is needed
        print(f"error: {error}", file=sys.stderr)
        return 1
