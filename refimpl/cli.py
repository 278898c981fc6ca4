"""The command line. Exit codes: 0 pass; 1 fail; 2 the user's mistake, in one line; 3 our own fault."""

import argparse
import importlib
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from .errors import LoracleError

COMMANDS = (
    *("bench", "check", "convert", "demo", "engines", "generate"),
    *("guide", "inspect", "logits", "record", "vectors"),
)


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake told in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Every subcommand, with an example each."""
    whole = Parser(prog="loracle", description="One base, many LoRA adapters, one batch: a reference that can be read.")
    whole.add_argument("--version", action="version", version=f"loracle {__version__}")
    sub = whole.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS:
        command = importlib.import_module(f".commands.{name}", __package__)
        one = sub.add_parser(
            name,
            help=command.HELP,
            description=command.HELP[0].upper() + command.HELP[1:] + ".",
            epilog=f"example:\n{command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(one)
        one.add_argument("--json", action="store_true", help="print JSON for machines instead")
        one.set_defaults(run=command.run)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    own_default = "--model" not in argv and not ("guide" in argv and "LORACLE_MODELS" in os.environ)
    if own_default or {"tiny", "random"} & set(argv):
        # The matrices of the embedded model and of made ones are so small that waking a second thread costs more than
        # it computes, and on a busy machine many times more. A BLAS asks this when numpy is imported, which is below.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    args = parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest, **more: print(f"loracle: warning: {message}", file=sys.stderr)
        try:
            return int(args.run(args))
        except LoracleError as error:
            print(f"loracle {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except MemoryError as error:
            print(f"loracle {args.command}: too little memory ({error})", file=sys.stderr)
            return 2
        except BrokenPipeError:  # `loracle ... | head` has seen enough
            sys.stderr.close()
            return 0
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            with tempfile.NamedTemporaryFile(
                "w", prefix="loracle-", suffix=".txt", delete=False, encoding="utf-8"
            ) as file:
                traceback.print_exc(file=file)
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            print(
                f"loracle {args.command}: a bug of ours ({what}); the traceback is in {Path(file.name)}",
                file=sys.stderr,
            )
            return 3


if __name__ == "__main__":
    sys.exit(main())
