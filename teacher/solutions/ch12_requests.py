from loracle import Request


def requests(adapter):
    first = adapter("first", r=4, lora_alpha=8)
    second = adapter("second", r=6, lora_alpha=9, use_rslora=True, target_modules=("q_proj", "v_proj", "lm_head"))
    third = adapter("third", r=3, lora_alpha=2, lora_bias=True)
    again = adapter("first", r=4, lora_alpha=3, alpha_pattern={"v_proj": 5}, rank_pattern={"q_proj": 2})
    everybody = [
        Request([1, 2], first, max_new_tokens=2),
        Request([9] * 4),
        Request([4, 5], second),
        Request([7], third),
    ]
    story = [Request([3, 4, 5], again), Request([1, 5], [(first, 0.5), (second, -2.0)])]
    return [
        everybody,
        story,
        [*everybody, Request([8], again)],
    ]  # the last one wants more adapters than there are slots
