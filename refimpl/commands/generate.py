"""loracle generate: prompts for any mix of adapters, answered in one batch."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from ..alora import NEVER, starts_of
from ..request_state import Output
from ..streaming import generate
from ..weights import Model
from .common import Prompt, add_model_arguments, add_prompt_arguments, load, read_requests
from .ranks import add_rank_arguments, on_ranks

HELP = "generate text: prompts for any mix of adapters, answered in one batch"
EXAMPLE = """  loracle generate --temperature 0.8 \\
    --prompt 'pirate:Rain drums on the haunted bakery. Here the traveller meets Dumpling, ...' \\
    --prompt 'bard*0.5+pirate*0.5:Fog curls around the toad museum. Here the traveller meets Waffle, ...'
  loracle generate --model ./llama --adapter sql=./sql-lora --prompt 'sql:SELECT' --prompt 'base:SELECT'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of generate."""
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_rank_arguments(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default 128")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="0 (default) is off")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1 (default) is off")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of every request that names none (default 0)")


def run(args: argparse.Namespace) -> int:
    """Answer every prompt."""
    model, adapters = load(args)
    prompts = read_requests(
        args,
        model,
        adapters,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    warn_of_inactive(prompts)
    with np.errstate(over="ignore", invalid="ignore"):  # no token is chosen of NaN: that is said in one line
        outputs = on_ranks(args, generate, model, [prompt.request for prompt in prompts])
    outputs = [in_own_words(prompt, output, model) for prompt, output in zip(prompts, outputs, strict=True)]
    if args.json:
        texts = [
            {
                "adapter": prompt.adapter,
                "prompt": prompt.text,
                "text": output.text,
                "token_ids": output.token_ids,
                "finish_reason": output.finish_reason,
            }
            for prompt, output in zip(prompts, outputs, strict=True)
        ]
        print(json.dumps({"texts": texts}))
        return 0
    console = Console()
    for prompt, output in zip(prompts, outputs, strict=True):
        console.print(Rule(Text(prompt.adapter, style="bold"), align="left"))
        if prompt.text:
            console.print(Text(prompt.text.rstrip(), style="dim"))
        console.print(Text(output.text if output.text else " ".join(map(str, output.token_ids))))
        if output.finish_reason == "length":
            console.print(Text(f"[stopped at {len(output.token_ids)} tokens: --max-new-tokens]", style="dim italic"))
    return 0


def in_own_words(prompt: Prompt, output: Output, model: Model) -> Output:
    """Return the output with the text that its adapter's own tokenizer makes of the ids."""
    if prompt.tokenizer is model.tokenizer:
        return output
    ids = output.token_ids[:-1] if output.finish_reason == "stop" else output.token_ids
    return replace(output, text=prompt.tokenizer.decode(ids))


def warn_of_inactive(prompts: Sequence[Prompt]) -> None:
    """Say on stderr which aLoRA will not act: its invocation is not in the prompt, and the base alone answers."""
    for prompt in prompts:
        for (adapter, _), start in zip(prompt.request.adapters, starts_of(prompt.request), strict=True):
            if start == NEVER:
                tokens = list(adapter.config.alora_invocation_tokens)
                why = f"its alora_invocation_tokens {tokens} are not in the prompt"
                print(f"loracle: warning: adapter {adapter.name} does not act: {why}", file=sys.stderr)
