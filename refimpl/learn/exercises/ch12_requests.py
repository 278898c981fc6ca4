"""Chapter 12: requests whose exact answers are known, and that show as many bugs as few tokens can.

loracle learn check        how many known bugs do they expose?
loracle learn hint         a hint; there are three
"""

from loracle import Request


def requests(adapter):
    """Return a list of batches, each a list of Requests, for a small random model (64 token ids, one layer).

    adapter(name, r=8, lora_alpha=8, ...)  makes a random adapter; each call makes another one, even under one name.
            Further keys are those of PEFT's adapter_config.json: use_rslora=True, target_modules=("q_proj", "lm_head"),
            rank_pattern={"v_proj": 3}, alpha_pattern={"v_proj": 3}, lora_bias=True
    Request([1, 2, 3], lora, max_new_tokens=2)   for one adapter, None, or a sum [(lora, 0.5), (other, -2.0)]

    One engine with three adapter slots serves the batches one after the other; a request makes one token unless it
    says otherwise. All prompts and answers together may have 60 tokens.
    """
    raise NotImplementedError
    return [[Request([1, 2, 3], adapter("first"))]]  # the smallest answer: it exposes 10 of 51
