"""Entry point of ``pbench`` and ``python -m pbench``: turns errors into one clear line and an exit code.

Exit codes: 0 done, 1 the run itself failed, 2 what the user gave cannot work, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence

import click

from pbench.cli import cli
from pbench.engine.errors import EngineError
from pbench.errors import PbenchError
from pbench.units import printable
from pbench.workloads.errors import WorkloadError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Errors of a user go to stderr, without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # A command ends with another code than 0 through ctx.exit(code), which click returns here.
        code = cli.main(args=arguments, prog_name="pbench", standalone_mode=False, obj=("pbench", *arguments))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PbenchError as error:
        return _complain(error, error.exit_code)
    except (EngineError, WorkloadError) as error:
        return _complain(error, EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`pbench env | head`). Python flushes stdout once more at exit: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _complain(error: Exception, exit_code: int) -> int:
    click.echo("error: " + "\n".join(printable(line) for line in str(error).splitlines()), err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
