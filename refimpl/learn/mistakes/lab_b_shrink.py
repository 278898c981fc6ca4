"""Wrong shrink kernels: what each lacks. The kernels themselves are in lab_b_shrink.cu, under the step's name first."""

from functools import lru_cache
from pathlib import Path

from ...cuda.runner.cpu import CPUModule
from ..exercise import Mistake
from ..kernel_attempts import KernelAttempt, Shape, load_kernels

TENSORRT_LLM_2096 = "https://github.com/NVIDIA/TensorRT-LLM/issues/2096"
VLLM_49063 = "https://github.com/vllm-project/vllm/issues/49063"
PUNICA_57 = "https://github.com/punica-ai/punica/issues/57"
LORAX_70 = "https://github.com/predibase/lorax/pull/70"

NO_MINUS_ONE = (
    "a token without an adapter has the id -1, and as an index that is the memory before A: another tenant's weights, "
    "if they lie there.",
    TENSORRT_LLM_2096,
    VLLM_49063,
)
NO_RANK_TEST = ("the last block has more threads than there are rows of A left, and they work all the same.",)

SAYS: dict[str, dict[str, tuple[str, ...]]] = {  # step -> mistake -> what it lacks, and the engines that had it
    "map": {
        "no_minus_one": NO_MINUS_ONE,
        "no_rank_test": NO_RANK_TEST,
        "adapters_one_row_apart": ("an adapter has `rank` rows; here the next one begins after a single row.",),
        "adapter_ignored": ("every token gets adapter 0, whoever asked for which.",),
        "zero_where_none": ("a row without an adapter is to be left as it is; zeros are something else.",),
        "adds_to_what_lay_there": ("what Ax holds before the launch means nothing: it is written, not added to.",),
    },
    "block": {
        "no_minus_one": NO_MINUS_ONE,
        "no_barrier": ("a thread reads what another one writes, and nothing makes it wait until that is done.",),
        "barrier_before_the_loop_only": (
            "every round of the sum reads what the round before has written: each of them has to be waited for.",
        ),
        "barrier_in_the_branch": (
            "__syncthreads is one barrier for all threads of the block: where only some of them come, the others are "
            "waited for in vain.",
        ),
        "past_the_row": ("the row ends at d_in, and the last threads of the last round read on.",),
        "first_64_only": ("a row may be longer than the block has threads: what is left is nobody's.", PUNICA_57),
        "one_thread_does_it_all": (
            "it is right, and 63 of 64 threads are idle: nothing goes through shared memory, so nothing is shared.",
        ),
        "every_thread_does_it_all": ("it is right, and every number of A is read 64 times.",),
        "half_of_the_sum": ("some threads' sums are added to nothing: how many are there before the first round?",),
    },
    "warp": {
        "no_minus_one": NO_MINUS_ONE,
        "no_rank_test": NO_RANK_TEST,
        "mask_of_half_a_warp": ("the mask names the lanes that take part, and a lane that calls must be in it.",),
        "idle_lanes_leave": (
            "the mask names 32 lanes, and some have returned: a shuffle from a lane that takes no part is undefined.",
        ),
        "every_lane_writes": ("32 lanes write one number, and not all of them have the whole sum.",),
        "one_step_short": ("32 lanes are halved five times until one sum is left.", LORAX_70),
        "first_32_only": ("a row may be longer than a warp has lanes: what is left is nobody's.", PUNICA_57),
        "one_lane_does_it_all": ("it is right, and 31 of 32 lanes are idle: no lane hands anything to another.",),
        "shares_by_shared_memory": ("it is right, and it is step 2 again: a shuffle needs no memory at all.",),
    },
}


@lru_cache
def wrong_kernels() -> CPUModule:
    """Return the kernels of lab_b_shrink.cu, compiled once, when somebody's answer is to be named."""
    return load_kernels(Path(__file__).with_suffix(".cu"))


def mistakes_of(step: str, shape: Shape) -> list[Mistake]:
    """Return the known mistakes of one step ("map", "block", "warp"), launched with that step's shape."""
    return [
        Mistake(name, says, KernelAttempt(wrong_kernels, f"{step}_{name}", shape), tuple(links))
        for name, (says, *links) in SAYS[step].items()
    ]
