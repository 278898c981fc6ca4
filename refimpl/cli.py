"""The command line. Exit codes: 0 pass; 1 fail; 2 the user's mistake, in one line; 3 our own fault."""

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from . import __version__
from .commands.signals import on_signals
from .errors import AdapterWarning, KernelError, LoracleError
from .loading.suggestion import did_you_mean
from .parallel.launch import launch

COMMANDS = (
    *("bench", "check", "combine", "convert", "cost", "demo", "draw", "engines", "generate"),
    *("guide", "inspect", "learn", "logits", "merge", "record", "scores", "train", "vectors"),
)


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake told in one line that names what may have been meant."""

    given: Sequence[str] = ()  # what is being parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Remember the arguments, so that an error can be about one of them."""
        self.given = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}{self._suggestion(message)} (see {self.prog} --help)\n")

    def _suggestion(self, message: str) -> str:
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[\w.-]+", choice[2]))
        options = [option.removeprefix("--") for action in self._actions for option in action.option_strings]
        if re.search("arguments are required: .*--", message):
            required = [option for option in options if f"--{option}" in message]
            typed = [word.removeprefix("--").partition("=")[0] for word in self.given if word.startswith("--")]
            nearest = [near for word in typed if word not in options for near in close(word, required)]
            return f"; did you mean --{nearest[0]}?" if nearest else ""
        if unknown := re.match(r"unrecognized arguments:.*?--([\w-]+)", message):
            nearest = close(unknown[1], options)
            return f"; did you mean --{nearest[0]}?" if nearest else ""
        return ""


def close(option: str, options: Sequence[str]) -> list[str]:
    """Return the nearest of the options, if one is near."""
    return difflib.get_close_matches(option, options, n=1, cutoff=0.7)


def parser() -> Parser:
    """Return the parser of every subcommand, with an example each."""
    main_parser = Parser(
        prog="loracle", description="One base, many LoRA adapters, one batch: a reference that can be read."
    )
    main_parser.add_argument("--version", action="version", version=f"loracle {__version__}")
    subparsers = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS:
        command = importlib.import_module(f".commands.{name}", __package__)
        subparser = subparsers.add_parser(
            name,
            help=command.HELP,
            description=command.HELP[0].upper() + command.HELP[1:] + ".",
            epilog=f"example:\n{command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print JSON for machines instead")
        subparser.set_defaults(run=command.run, parser=subparser, group=None)  # group: the ranks, under mpirun
    return main_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; an unknown option is an error of the subcommand that it was given to."""
    args, unknown = parser().parse_known_args(argv)
    if unknown and "after_options" in args:
        unknown = args.after_options(args, unknown)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def one_thread_is_faster(argv: Sequence[str]) -> bool:
    """Return whether all matrices are those of the embedded model or of random ones.

    They are so small that waking a second thread costs more than it computes, and on a busy machine many times more.
    A BLAS asks for the number of its threads when numpy is imported, which importing the commands does. So this parser
    reads --model alone (of draw: --base), and before the others are there.
    """
    light = argparse.ArgumentParser(add_help=False)
    light.add_argument("command", nargs="?")
    light.add_argument("--model", nargs="?")
    light.add_argument("--base", nargs="?")
    args, _ = light.parse_known_args(argv)
    if args.command in ("combine", "merge"):
        return False
    model = args.base if args.command == "draw" else args.model
    if model is None:
        return not (args.command == "guide" and "LORACLE_MODELS" in os.environ)  # else the guide takes a 7B model
    return model in ("tiny", "random")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name = "loracle"
    try:
        rank, ranks = launch()
        if ranks > 1 or one_thread_is_faster(argv):
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with on_signals(lambda *_: os._exit(130), signal.SIGINT):  # in its import, numpy takes it for an ImportError
            if rank:
                name = f"loracle, rank {rank}"
                return int(importlib.import_module(".commands.ranks", __package__).serve())
            args = parse(argv)
        name = f"loracle {args.command}"
        with own_warnings_in_one_line():
            common = importlib.import_module(".commands.common", __package__)  # which imports numpy: not before
            common.say_which_kernels(args)
            if ranks > 1:
                return int(importlib.import_module(".commands.ranks", __package__).lead(args))
            return int(args.run(args))
    except LoracleError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KernelError as error:  # its lines are the compiler's, or the checker's
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"{name}: too little memory ({error})", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `loracle ... | head` needs no more
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{name}: a bug of ours ({what}); the traceback is in {keep_traceback()}", file=sys.stderr)
        return 3


@contextmanager
def own_warnings_in_one_line() -> Iterator[None]:
    """Print each of Loracle's warnings as one line; everybody else's keep Python's form and filters."""
    with warnings.catch_warnings():
        as_python_does = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, AdapterWarning):
                print(f"loracle: warning: {message}", file=sys.stderr)
            else:
                as_python_does(message, category, *rest, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", AdapterWarning)
        # On some CPUs a BLAS computes lanes that it drops, and NumPy reports what it meets there (numpy #29194).
        warnings.filterwarnings("ignore", ".* encountered in (dot|matmul|vecdot|matvec)", RuntimeWarning)
        yield


def keep_traceback() -> str:
    """Write the traceback of the exception that is being handled to a file that stays; return its name."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="loracle-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return file.name


if __name__ == "__main__":
    sys.exit(main())
