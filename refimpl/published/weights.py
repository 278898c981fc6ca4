"""Where the weights of the published examples lie, if they are here, and the command that fetches them if not.

$LORACLE_MODELS is a folder with one folder for each model or adapter, under the name that NVIDIA's documents use.
"""

import os
from collections.abc import Sequence
from pathlib import Path

MODELS = "LORACLE_MODELS"

REPOSITORIES = {
    "llama-7b-hf": "huggyllama/llama-7b",  # the first LLaMA; the repository that the guide meant is gone
    "luotuo-lora-7b-0.1": "silk-road/luotuo-lora-7b-0.1",  # qychen/luotuo-lora-7b-0.1 in the guide, which has moved
    "Japanese-Alpaca-LoRA-7b-v0": "kunishou/Japanese-Alpaca-LoRA-7b-v0",
    "Llama-2-13b-hf": "meta-llama/Llama-2-13b-hf",
    "chinese-llama-2-lora-13b": "hfl/chinese-llama-2-lora-13b",
    "TinyLlama-1.1B-Chat-v1.0": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "sft-tiny-chatbot": "snshrivas10/sft-tiny-chatbot",
    "TinyLlama-1.1B-Chat-v1.0-mental-health-conversational": (
        "givyboy/TinyLlama-1.1B-Chat-v1.0-mental-health-conversational"
    ),
    "tinyllama-tarot-v1": "barissglc/tinyllama-tarot-v1",
}
"""Folder name -> repository on the Hugging Face hub."""


def folder(name: str) -> Path | None:
    """$LORACLE_MODELS/name, if it is there."""
    models = os.environ.get(MODELS)
    folder = Path(models) / name if models else None
    return folder if folder and folder.is_dir() else None


def missing(names: Sequence[str]) -> str:
    """Empty if all of these folders are there; else one line that says which are not, and how to fetch them."""
    absent = [name for name in names if folder(name) is None]
    if not absent:
        return ""
    commands = [f"hf download {REPOSITORIES[n]} --local-dir ${MODELS}/{n}" for n in absent]
    where = os.environ.get(MODELS) or f"${MODELS}, which is not set"
    return f"{', '.join(absent)} not found in {where}; to fetch: {' && '.join(commands)}"
