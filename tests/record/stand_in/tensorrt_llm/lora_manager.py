"""LoraConfig, up to 1.0. In 0.20 it has no max_loras: the cache is sized by other means."""

from dataclasses import dataclass, field

from ._stand_in import RELEASE, undocumented

if RELEASE < (0, 21):

    @dataclass
    class LoraConfig:
        """Of 0.20."""

        lora_dir: list[str] = field(default_factory=list)
        lora_ckpt_source: str = "hf"
        max_lora_rank: int = 64
        lora_target_modules: list[str] = field(default_factory=list)
        trtllm_modules_to_hf_modules: dict[str, str] = field(default_factory=dict)

elif RELEASE <= (1, 0):

    @dataclass
    class LoraConfig:  # type: ignore[no-redef]
        """Of 0.21 and 1.0: four adapters unless more are asked for."""

        lora_dir: list[str] = field(default_factory=list)
        lora_ckpt_source: str = "hf"
        max_lora_rank: int = 64
        lora_target_modules: list[str] = field(default_factory=list)
        trtllm_modules_to_hf_modules: dict[str, str] = field(default_factory=dict)
        max_loras: int = 4
        max_cpu_loras: int = 4


__getattr__ = undocumented("tensorrt_llm.lora_manager")
