"""LoraConfig, from 1.3 on: a pydantic model that forbids what it does not know."""

from typing import Any

from ...._stand_in import forbid_others, undocumented

DEFAULTS: dict[str, Any] = {
    "lora_dir": [],
    "lora_ckpt_source": "hf",
    "max_lora_rank": 64,
    "lora_target_modules": [],
    "trtllm_modules_to_hf_modules": {},
    "max_loras": None,
    "max_cpu_loras": None,
    "swap_gate_up_proj_lora_b_weight": True,
    "overlap_lora_and_base": False,
    "cuda_graph_specialize_lora": False,
}


class LoraConfig:
    """extra="forbid"."""

    def __init__(self, **given: Any) -> None:
        forbid_others("LoraConfig", given, frozenset(DEFAULTS))
        for name, value in (DEFAULTS | given).items():
            setattr(self, name, value)


__getattr__ = undocumented("tensorrt_llm._torch.peft.lora.config")
