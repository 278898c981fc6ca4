"""What the subcommands share: loading a model and its adapters, and reading NAME*0.5+OTHER:TEXT."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tiny
from ..adapter import Adapter
from ..backends import BACKENDS
from ..errors import RequestError
from ..loading.adapter_folder import load_adapter
from ..loading.model_folder import load_model
from ..request import Request, check_request
from ..weights import Model

BASE = "base"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --adapter, --dtype, --device and --ops."""
    parser.add_argument("--model", default="tiny", metavar="DIR|tiny", help="a Hugging Face folder (default: tiny)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help=f"a PEFT folder and the name to call it by; again for more. With tiny: {', '.join(tiny.VOICES)} are there",
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default), float64, float16 or bfloat16")
    parser.add_argument("--device", help="cpu or cuda, which needs CuPy (default cpu; with --ops cuda a GPU, if any)")
    add_ops_argument(parser)


def add_ops_argument(parser: argparse.ArgumentParser) -> None:
    """--ops."""
    parser.add_argument(
        "--ops",
        default="numpy",
        choices=sorted(BACKENDS),
        help="which table of steps runs (default numpy); cuda: the kernels, on a GPU, or slowly on this CPU",
    )


def default_device(ops: str) -> str:
    """Where the model lives unless the user says: on the GPU for the kernels, if they run on one."""
    if ops != "cuda":
        return "cpu"
    from ..cuda import runner

    return "cuda" if runner.world() == "gpu" else "cpu"


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """--prompt and --prompts."""
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
        help="one request a line: adapter, prompt or prompt_ids, and optionally max_new_tokens, seed, temperature",
    )


@dataclass(frozen=True)
class Asked:
    """One request as the user wrote it, and as it runs."""

    adapter: str
    prompt: str | None
    request: Request


def load(args: argparse.Namespace) -> tuple[Model, "Adapters"]:
    """The model, and the adapters by name; a voice of the tiny model is only read when somebody asks for it."""
    model = load_model(args.model, args.dtype, args.device or default_device(args.ops))
    folders: dict[str, Path] = {}
    if args.model == "tiny":
        folders.update(tiny.VOICES)
    for item in args.adapter:
        name, equals, folder = item.partition("=")
        if not equals or not name or not folder:
            raise RequestError(f"--adapter {item}: expected NAME=DIR")
        if name == BASE or any(c in name for c in "*+:="):
            raise RequestError(f"--adapter {item}: the name {name!r} is taken, or has one of * + : = in it")
        folders[name] = Path(folder)
    adapters = Adapters(folders, model)
    for item in args.adapter:  # what was named on the command line is checked even if no prompt uses it
        adapters[item.partition("=")[0]]
    return model, adapters


class Adapters:
    """Name -> adapter, loaded when first asked for, once."""

    def __init__(self, folders: dict[str, Path], model: Model) -> None:
        self._folders, self._model = folders, model
        self._loaded: dict[str, Adapter] = {}

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._folders:
            known = ", ".join([BASE, *self._folders])
            raise RequestError(f"adapter {name!r} is not known; known are {known} (add one with --adapter NAME=DIR)")
        if name not in self._loaded:
            self._loaded[name] = load_adapter(self._folders[name], self._model.config, name=name)
        return self._loaded[name]

    def chosen(self, spec: str) -> Adapter | list[tuple[Adapter, float]] | None:
        """base, NAME, or NAME*0.5+OTHER*1.0."""
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


def read_requests(args: argparse.Namespace, model: Model, adapters: Adapters, **sampling: Any) -> list[Asked]:
    """Every --prompt, then every line of --prompts; all of them checked before anything runs."""
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
    return [one_request(where, row, model, adapters, sampling) for where, row in rows]


FIELDS: dict[str, tuple[type, ...]] = {
    "adapter": (str,),
    "prompt": (str,),
    "prompt_ids": (list,),
    "max_new_tokens": (int,),
    "seed": (int,),
    "temperature": (int, float),
}


def read_lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file:line, fields) of each line that is not blank."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RequestError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise RequestError(f"{where}: expected an object with the keys {', '.join(FIELDS)}")
        for key, value in row.items():
            if key not in FIELDS:
                raise RequestError(f"{where}: unknown key {key!r}; known are {', '.join(FIELDS)}")
            if not isinstance(value, FIELDS[key]) or isinstance(value, bool):
                raise RequestError(f"{where}: {key} is {value!r}, not {FIELDS[key][0].__name__}")
        found.append((where, row))
    return found


def one_request(where: str, row: dict[str, Any], model: Model, adapters: Adapters, sampling: dict[str, Any]) -> Asked:
    """One row as a checked Request; a row's own fields win over the command line's."""
    if ("prompt" in row) == ("prompt_ids" in row):
        raise RequestError(f"{where}: give either prompt or prompt_ids")
    ids = row["prompt_ids"] if "prompt_ids" in row else prompt_ids(model, row["prompt"])
    spec = row.get("adapter", BASE)
    options: dict[str, Any] = {
        **sampling,
        **{key: row[key] for key in ("max_new_tokens", "seed", "temperature") if key in row},
    }
    try:
        request = Request(ids, adapters.chosen(spec), **options)
        check_request(request, model.config)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from None
    return Asked(spec, row.get("prompt"), request)


def prompt_ids(model: Model, text: str) -> Sequence[int]:
    """The ids of a prompt. A scene of the embedded model begins on a new line: it has never seen another prompt."""
    embedded = model.tokenizer.file.parent == tiny.base_path()
    return model.tokenizer.encode(text + "\n" if embedded and not text.endswith("\n") else text)


def human_bytes(n: float) -> str:
    """1.2 MB."""
    power = min(4, int(math.log(n, 1000))) if n >= 1 else 0
    return f"{n / 1000**power:.{0 if power == 0 else 1}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
