"""LoRARequest(lora_name, lora_int_id, lora_path)."""

import os
from dataclasses import dataclass

from .._stand_in import FAULT, undocumented

if FAULT != "no LoRARequest":

    @dataclass
    class LoRARequest:
        """An adapter by its id: the caches know nothing else of it."""

        lora_name: str
        lora_int_id: int
        lora_path: str = ""

        def __post_init__(self) -> None:
            if self.lora_path and not os.path.exists(self.lora_path):
                raise ValueError(f"lora_path ({self.lora_path}) does not exist.")


else:
    raise ModuleNotFoundError("No module named 'tensorrt_llm.executor.request'")

__getattr__ = undocumented("tensorrt_llm.executor.request")
