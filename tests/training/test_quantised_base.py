"""QLoRA: a base in 4 bits is the numbers that its blocks stand for, and an adapter trains on those, in float32."""

from pathlib import Path

import numpy as np
from drawn_tasks import random_examples
from loading.gguf_writer import WIDE, model_tensors, write_gguf
from support.build import EVERYWHERE
from support.compare import assert_same_bits

from refimpl.formats.hf import save_model
from refimpl.loading.model_folder import load_model
from refimpl.training.arguments import TrainingArguments
from refimpl.training.examples import Task
from refimpl.training.loop import train
from refimpl.training.lora_config import LoraConfig


def test_an_adapter_trains_on_the_numbers_that_a_base_in_four_bits_stands_for(tmp_path: Path) -> None:
    """The same states on a Q4_0 file and on its numbers as a folder, to the bit; other ones on the unquantised base."""
    tensors = model_tensors(WIDE)
    write_gguf(tmp_path / "base.gguf", WIDE, tensors, "Q4_0")
    write_gguf(tmp_path / "exact.gguf", WIDE, tensors)
    quantised, exact = (load_model(tmp_path / name, "float32") for name in ("base.gguf", "exact.gguf"))
    save_model(quantised, tmp_path / "folder")
    examples = random_examples(WIDE, [5, 9, 3], 0)
    task = Task("mine", LoraConfig(4, 9, EVERYWHERE), examples)
    arguments = TrainingArguments(epochs=4, learning_rate=1e-3, batch_tokens=20, warmup_ratio=0.0)
    on_file, on_numbers, on_exact = (
        train(model, [task], arguments) for model in (quantised, load_model(tmp_path / "folder", "float32"), exact)
    )
    arrays = on_numbers.arrays()
    for name, x in on_file.arrays().items():
        assert x.dtype == np.float32
        assert_same_bits(x, arrays[name])
    assert on_file.tasks["mine"].losses[-1] < on_file.tasks["mine"].losses[0] != on_exact.tasks["mine"].losses[0]
