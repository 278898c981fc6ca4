"""Right in another way: these must pass."""

from loracle import Request


def without_patterns(adapter):
    # One long story of small batches: memory, weights and sums, and no rare shape of an adapter.
    a_few = [adapter(f"tenant {i}", r=3 + i, lora_alpha=2 + 3 * i, use_rslora=i == 2) for i in range(4)]
    first, second, third, fourth = a_few
    batch = [
        Request([1, 2, 3], first),
        Request([4, 4]),
        Request([5], second, max_new_tokens=2),
        Request([6] * 3, third),
    ]
    weighed = [Request([7, 8], [(fourth, 0.5), (first, 2.0)]), Request([9, 9, 9]), Request([1], [(second, -1.0)])]
    return (batch, weighed, [Request([2, 3], first), Request([3, 2], adapter("tenant 0", r=5))], batch)


def by_chance(adapter):
    import random

    chance = random.Random(12)
    tenants = [
        adapter(
            "ab"[i % 2],
            r=chance.choice([2, 3, 5]),
            lora_alpha=chance.choice([1, 4, 7]),
            use_rslora=i % 3 == 0,
            lora_bias=i % 2 == 0,
            target_modules=("q_proj", "v_proj", "lm_head") if i % 2 else ("v_proj", "down_proj"),
        )
        for i in range(6)
    ]
    batches = []
    for _ in range(5):
        some = [None, *chance.sample(tenants, 2), [(chance.choice(tenants), 0.5)]]
        chance.shuffle(some)
        batches.append(
            [
                Request([chance.randrange(64) for _ in range(chance.randint(1, 3))], who, 1 + len(batches) % 2)
                for who in some
            ]
        )
    return batches


MUST_PASS = [without_patterns, by_chance]
