"""Our torch.randn against torch's own, bit for bit: the sizes, the seeds, one generator drawn from again and again."""

import numpy as np
import pytest

from refimpl.published.torch_randn import manual_seed, randn_float16, randn_float16_of_2_13, randn_float32

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[test,peft]'", exc_type=ImportError)
VERSION = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
SHAPES = [(16,), (8, 2048), (2560, 8), (3, 5, 16), (1 << 20,)]

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason=f"torch draws by AVX2 what is reproduced here, and by {torch.backends.cpu.get_cpu_capability()} on this CPU",
)


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_float32_is_the_same_to_the_last_bit(seed: int) -> None:
    theirs, ours = torch.Generator().manual_seed(seed), manual_seed(seed)
    for shape in SHAPES:
        x = torch.randn(shape, generator=theirs).numpy()
        assert np.array_equal(x.view(np.int32), randn_float32(ours, shape).view(np.int32))


@pytest.mark.skipif((2, 8) < VERSION < (2, 13), reason="2.8 and 2.13 were looked at, and nothing in between")
def test_float16_is_the_same_to_the_last_bit() -> None:
    randn = randn_float16 if VERSION <= (2, 8) else randn_float16_of_2_13
    torch.manual_seed(42)
    ours = manual_seed(42)
    for shape in SHAPES:
        x = torch.randn(shape, dtype=torch.float16).numpy()
        assert np.array_equal(x.view(np.int16), randn(ours, shape).view(np.int16))
