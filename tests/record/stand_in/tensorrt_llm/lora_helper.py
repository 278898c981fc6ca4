"""LoraConfig, in 1.1 and 1.2: a dataclass; max_loras is None unless it is given."""

from dataclasses import dataclass, field

from ._stand_in import only, undocumented

only((1, 1), (1, 2), __name__)


@dataclass
class LoraConfig:
    """A dataclass: an unknown argument is a TypeError."""

    lora_dir: list[str] = field(default_factory=list)
    lora_ckpt_source: str = "hf"
    max_lora_rank: int = 64
    lora_target_modules: list[str] = field(default_factory=list)
    trtllm_modules_to_hf_modules: dict[str, str] = field(default_factory=dict)
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    swap_gate_up_proj_lora_b_weight: bool = True


__getattr__ = undocumented("tensorrt_llm.lora_helper")
