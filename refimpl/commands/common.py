"""What the subcommands share: loading a model and its adapters, and reading NAME*0.5+OTHER:TEXT."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tiny
from ..adapter import Adapter
from ..backends import BACKENDS
from ..config import LM_HEAD, Module
from ..engines import registry
from ..engines.ours import Ours
from ..engines.registry import BLIND, MUTANT
from ..errors import DataError, RequestError
from ..loading.adapter_folder import load_adapter
from ..loading.json_file import read_json_lines
from ..loading.model_folder import load_model
from ..loading.peft_config import replication_of
from ..loading.suggestion import did_you_mean
from ..ops import Ops
from ..replication import replicated
from ..request import Request, check_request
from ..tokenizer import Tokenizer
from ..weights import Base, Model
from .terms import warn_of_weights
from .texts import Texts, prompt_text

BASE = "base"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model, --adapter, --dtype, --device and --ops."""
    parser.add_argument(
        "--model", default="tiny", metavar="DIR|GGUF|tiny", help="a Hugging Face folder or a GGUF file (default: tiny)"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a PEFT or mlx-lm folder or a GGUF file, and the name to call it by; again for more. "
        f"With tiny: {', '.join(tiny.VOICES)} are there",
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default), float64, float16 or bfloat16")
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device and --ops."""
    parser.add_argument("--device", help="cpu or cuda, which needs CuPy (default cpu; with --ops cuda a GPU, if any)")
    parser.add_argument(
        "--ops",
        default="numpy",
        choices=OpsNames(),
        help="which backend runs (default numpy); cuda: the kernels, on a GPU, or slowly on this CPU; mutant:NAME and "
        "blind:KEY: one with a known bug",
    )


class OpsNames:
    """What --ops may be: a backend, or one with a known bug, under its name or its code name."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(BACKENDS))

    def __contains__(self, name: str) -> bool:
        return name in BACKENDS or name.startswith((MUTANT, BLIND))


def backend(name: str) -> Ops:
    """Return the backend that --ops names; a mutant starts without a memory. EngineError for a bug there is not."""
    if name in BACKENDS:
        return BACKENDS[name]
    engine = registry.make(name, {})
    assert isinstance(engine, Ours)  # as all mutants are
    return engine.make_ops()


def default_device(ops: str) -> str:
    """Return where the model lives unless the user says: on the GPU for the kernels, if they run on one."""
    if ops != "cuda":
        return "cpu"
    from ..cuda import runner

    return "cuda" if runner.device() == "gpu" else "cpu"


def say_which_kernels(args: argparse.Namespace) -> None:
    """Say on stderr which kernels a command runs, if it does: an edited copy may not be the one."""
    arguments = vars(args)
    if "cuda" in (arguments.get("ops"), arguments.get("engine")):
        from ..cuda import runner

        print(f"loracle: {runner.about_kernels(arguments.get('check') is True)}", file=sys.stderr)


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --prompt, --prompts and --chat."""
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME:TEXT",
        help=f"who answers what; {BASE} is the model alone, NAME*0.5+OTHER*1.0 sums adapters; again for more. "
        "With tiny, whose scenes begin on a new line, a line break is added to the text",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE.jsonl",
        help="one request a line: adapter, one of prompt, prompt_ids and messages (a chat, for the template), "
        "and optionally max_new_tokens, seed, temperature",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="a prompt is what a user says: put it into the chat template, the adapter's own or the base's",
    )


@dataclass(frozen=True)
class Prompt:
    """One request as the user wrote it, and as it runs."""

    adapter: str
    text: str | None
    request: Request
    tokenizer: Tokenizer  # the base's, or its adapter's own


def load(args: argparse.Namespace) -> tuple[Model, "Adapters"]:
    """Return the model, and the adapters by name; a voice of the tiny model is only read when a request names it."""
    model = load_model(args.model, args.dtype, args.device or default_device(args.ops))
    embedded = tiny.VOICES if args.model == "tiny" else {}
    folders = adapter_folders(args.adapter, embedded)
    if runs := next(filter(None, map(replication_of, folders.values())), ()):
        model = replicated(model, runs)  # adapters without these runs are refused when they are loaded
    adapters = Adapters({**embedded, **folders}, model)
    for name in folders:  # what was named on the command line is checked even if no prompt uses it
        adapters[name]
    return model, adapters


def adapter_folders(items: Sequence[str], embedded: Mapping[str, Path], kind: str = "voice") -> dict[str, Path]:
    """Return the folder of each --adapter NAME=DIR. No name stands for two adapters; `embedded` are there already.

    kind: what those of the embedded model are called."""
    folders: dict[str, Path] = {}
    for item in items:
        name, equals, folder = item.partition("=")
        if not equals or not name or not folder:
            raise RequestError(f"--adapter {item}: expected NAME=DIR")
        if name == BASE or any(letter in name for letter in "*+:="):
            raise RequestError(f"--adapter {item}: the name {name!r} is taken, or has one of * + : = in it")
        if name in folders:
            raise RequestError(f"--adapter {item}: the name {name!r} is given twice, first for {folders[name]}")
        if name in embedded and Path(folder) not in (embedded[name], Path(name)):
            raise RequestError(f"--adapter {item}: {name!r} is a {kind} of the embedded model; give yours another name")
        folders[name] = Path(folder)
    return folders


class Adapters:
    """Name -> adapter, loaded when it is first looked up, once."""

    def __init__(self, folders: Mapping[str, Path], model: Base, load: Callable[..., Adapter] = load_adapter) -> None:
        """load: (folder, base, name=...) -> Adapter; of pictures, load_picture_adapter, it takes the base's config."""
        self._folders, self._model, self._load = folders, model, load
        self._loaded: dict[str, Adapter] = {}

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._folders:
            names = [BASE, *self._folders]
            raise RequestError(
                f"adapter {name!r} is not known; known are {', '.join(names)} (add one with --adapter NAME=DIR)"
                f"{did_you_mean(name, names)}"
            )
        if name not in self._loaded:
            base = self._model if isinstance(self._model, Model) else self._model.config
            self._loaded[name] = self._load(self._folders[name], base, name=name)
        return self._loaded[name]

    def folders(self, spec: str) -> dict[str, Path]:
        """Return the folder of each adapter that is named in it."""
        names = [] if spec == BASE else [term.partition("*")[0].strip() for term in spec.split("+")]
        return {name: self._folders[name] for name in names if name in self._folders}

    def chosen(self, spec: str) -> Adapter | list[tuple[Adapter, float]] | None:
        """Return what `base`, NAME, or NAME*0.5+OTHER*1.0 stands for."""
        if spec == BASE:
            return None
        parts = []
        for term in spec.split("+"):
            name, star, weight = term.partition("*")
            try:
                parts.append((self[name.strip()], float(weight) if star else 1.0))
            except ValueError:
                raise RequestError(f"adapter {spec!r}: {weight!r} is not a number") from None
        return parts[0][0] if len(parts) == 1 and parts[0][1] == 1 else parts


def read_requests(
    args: argparse.Namespace, model: Model, adapters: Adapters, head: Module = LM_HEAD, **sampling: Any
) -> list[Prompt]:
    """Return every --prompt, then every line of --prompts; all of them are checked before anything runs.

    head: what is read out of the forward pass, LM_HEAD or SCORE."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for item in args.prompt:
        name, colon, text = item.partition(":")
        if not colon:
            raise RequestError(f"--prompt {item!r}: expected NAME:TEXT, for instance {BASE}:{item}")
        rows.append((f"--prompt {name}", {"adapter": name, "prompt": text}))
    if args.prompts:
        rows += read_lines(args.prompts)
    if not rows:
        raise RequestError(f"nothing to do: give --prompt NAME:TEXT (NAME may be {BASE}) or --prompts FILE.jsonl")
    texts = Texts(model, args.chat)
    return [one_request(where, row, texts, adapters, sampling, head) for where, row in rows]


PROMPTS = ("prompt", "prompt_ids", "messages")
FIELDS: dict[str, tuple[type, ...]] = {
    "adapter": (str,),
    "prompt": (str,),
    "prompt_ids": (list,),
    "messages": (list,),
    "max_new_tokens": (int,),
    "seed": (int,),
    "temperature": (int, float),
}


def read_lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (file:line, fields) of each line that is not blank."""
    rows = read_json_lines(file, RequestError)
    for where, row in rows:
        for key, value in row.items():
            if key not in FIELDS:
                raise RequestError(
                    f"{where}: unknown key {key!r}; known are {', '.join(FIELDS)}{did_you_mean(key, FIELDS)}"
                )
            if not isinstance(value, FIELDS[key]) or isinstance(value, bool):
                raise RequestError(f"{where}: {key} is {value!r}, not {FIELDS[key][0].__name__}")
    return rows


def one_request(
    where: str, row: dict[str, Any], texts: Texts, adapters: Adapters, sampling: dict[str, Any], head: Module
) -> Prompt:
    """Return one row as a checked Request; a row's own fields win over the command line's."""
    if sum(key in row for key in PROMPTS) != 1:
        raise RequestError(f"{where}: give one of {', '.join(PROMPTS)}")
    spec = row.get("adapter", BASE)
    options: dict[str, Any] = {
        **sampling,
        **{key: row[key] for key in ("max_new_tokens", "seed", "temperature") if key in row},
    }
    try:
        chosen, folders = adapters.chosen(spec), adapters.folders(spec)
        text, ids = texts.ids(row, folders)
        request = Request(ids, chosen, **options)
        check_request(request, texts.model.config, head)
        warn_of_weights(request.adapters)
    except (DataError, RequestError) as error:
        raise RequestError(f"{where}: {error}") from None
    return Prompt(spec, text, request, texts.tokenizer(folders) if "prompt_ids" not in row else texts.model.tokenizer)


def prompt_ids(model: Model, text: str) -> Sequence[int]:
    """Return the ids of a prompt."""
    return model.tokenizer.encode(prompt_text(model, text))


def cut_between_words(line: str, width: int) -> str:
    """Return a line as lines of this width, the later ones indented; a longer word, an address say, stays whole."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    wrapper = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return line if len(line) <= width else wrapper.fill(line)
