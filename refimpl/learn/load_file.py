"""A learner's file as a function, or the sentence that says why there is none."""

import ast
import contextlib
import inspect
import sys
import tokenize
import traceback
import types
from pathlib import Path

from ..loading.suggestion import did_you_mean
from .attempt import PRINTED, FirstCharacters
from .exercise import Attempt

OUTSIDE = "outside of your file"


class DoesNotRun(Exception):
    """The file gives no function. `lines` say why; `printed` is what it printed until then."""

    def __init__(self, *lines: str) -> None:
        super().__init__(lines[-1])
        self.lines, self.printed = list(lines), ""


def load_function(file: Path, name: str) -> tuple[Attempt, str]:
    """Run the file in this process; return its function of this name, and the beginning of what the file printed.

    DoesNotRun for a file that cannot be read, is no Python, stops, or has no such function."""
    output = FirstCharacters(PRINTED)
    try:
        with contextlib.redirect_stdout(output):
            namespace = vars(run_file(file))
        return function_in(namespace, name), output.getvalue()
    except DoesNotRun as error:
        error.printed = output.getvalue()
        raise


def run_file(file: Path) -> types.ModuleType:
    """Execute a file as a module of the name of the file; files beside it can be imported."""
    try:
        code = compile(source_of(file), str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise DoesNotRun(*syntax_error(error)) from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:  # a zero byte; brackets a thousand deep
        raise DoesNotRun(f"It is no Python: {error}.") from None
    module = types.ModuleType(file.stem)
    module.__file__ = str(file)
    sys.modules[file.stem] = module  # where dataclasses and pickle look for it
    sys.path.append(str(file.parent))  # last: a learner's random.py is not to take the place of Python's
    try:
        exec(code, vars(module))
    except SystemExit as error:
        raise DoesNotRun(f"It ends the program with sys.exit() ({line_in(file, error)}).") from None
    except Exception as error:
        raise DoesNotRun(f"{type(error).__name__}: {error} ({line_in(file, error)})") from None
    return module


def source_of(file: Path) -> str:
    """Return the text of a file, in UTF-8 or what its first lines name."""
    try:
        with tokenize.open(file) as stream:
            return stream.read()
    except FileNotFoundError:
        raise DoesNotRun(f"It is not there: `loracle learn reset {file.stem}` brings the file back.") from None
    except OSError as error:
        raise DoesNotRun(f"It cannot be read: {error.strerror or error}.") from None
    except (UnicodeDecodeError, SyntaxError):
        raise DoesNotRun("It is no text in UTF-8, nor in the encoding that it names: save it as UTF-8.") from None


def syntax_error(error: SyntaxError) -> list[str]:
    """Return the line of the file, a caret under what is wrong, and Python's sentence."""
    message = f"{type(error).__name__}: {error.msg}"
    if error.lineno is None:
        return [message]
    text = (error.text or "").rstrip("\n")
    if not text.strip():
        return [f"line {error.lineno}: {message}"]
    indent = len(text) - len(text.lstrip())
    label = f"line {error.lineno}: "
    caret = " " * (len(label) + max((error.offset or 1) - 1 - indent, 0)) + "^"
    return [label + text.lstrip(), caret, message]


def line_in(file: Path, error: BaseException) -> str:
    """Return which line of the file was being executed."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"line {lines[-1]}" if lines else OUTSIDE


def check_parameters(function: Attempt, name: str, original: Path) -> None:
    """Raise DoesNotRun if the function cannot be called as the one of this name in the original file can."""
    tree = ast.parse(original.read_text("utf-8"))
    definition = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    names = [argument.arg for argument in definition.args.args]
    with contextlib.suppress(ValueError):  # a function in C has no signature that could be seen
        signature = inspect.signature(function)
        try:
            signature.bind(*names)
        except TypeError:
            raise DoesNotRun(f"{name} is called with ({', '.join(names)}): yours takes {signature}.") from None


def function_in(namespace: dict[str, object], name: str) -> Attempt:
    """Return the function of this name; DoesNotRun where it is missing, or something else."""
    value = namespace.get(name)
    if value is None:
        functions = [key for key, other in namespace.items() if isinstance(other, types.FunctionType)]
        raise DoesNotRun(f"There is no function {name} in it{did_you_mean(name, functions) or '.'}")
    if not callable(value):
        raise DoesNotRun(f"{name} is not a function in it, but {type(value).__name__}.")
    return value
