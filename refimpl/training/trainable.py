"""Which bases have a way back: the backward pass is written for Llama and what is dense and like it."""

from ..config import ModelConfig
from ..errors import LoracleError


def without_gradients(config: ModelConfig) -> list[str]:
    """What of a base's forward pass has no way back here."""
    missing = {
        "multi-head latent attention": config.mla is not None,
        "experts": config.moe is not None,
        "layers that differ in their heads or modules": config.uneven,
        "an input of its own for each layer": bool(config.hidden_size_per_layer_input),
        "a factor at the end of each layer": config.layer_scalar,
        "LayerNorm": config.norms.centred,
        "attention and MLP beside each other": config.parallel,
        "an MLP without a gate": config.gate_up in (("c_fc",), ("up_proj",)),
        "a norm of values": config.norms.v is not None,
    }
    return [reason for reason, present in missing.items() if present]


def check_trainable(config: ModelConfig, who: str = "training") -> None:
    """LoracleError for a base whose forward pass has no way back here. who: the task that asks."""
    if reasons := without_gradients(config):
        raise LoracleError(f"{who}: there are no gradients for a base with {', '.join(reasons)}")
