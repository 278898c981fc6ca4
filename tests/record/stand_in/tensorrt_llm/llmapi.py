"""KvCacheConfig, and from 1.0 on CudaGraphConfig."""

from dataclasses import dataclass

from ._stand_in import RELEASE, undocumented


@dataclass
class KvCacheConfig:
    """The arguments that matter here."""

    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = None


if RELEASE >= (1, 0):

    @dataclass
    class CudaGraphConfig:
        """From 1.0 on."""

        batch_sizes: list[int] | None = None
        max_batch_size: int = 0
        enable_padding: bool = False


__getattr__ = undocumented("tensorrt_llm.llmapi")
