"""TensorRT-LLM's modules: the numbers in a lora_config, their names, their widths, and how ranks share them.

Ids and split axes: cpp/include/tensorrt_llm/runtime/loraModule.h; 22 to 25 and the Hugging Face names:
_torch/peft/lora/manager.py and config.py. Two traps. gate_proj, the branch with the SiLU, is mlp_h_to_4h, and up_proj
is mlp_gate: the names suggest the opposite. And the halves of a gate_up_proj are swapped on their way in
(swap_gate_up_proj_lora_b_weight): of mlp_gate_up, B is up's rows and then gate's.
"""

from dataclasses import dataclass

from ..config import ModelConfig


@dataclass(frozen=True)
class Module:
    """One row of the table."""

    id: int
    name: str
    hf: str  # the name in Hugging Face models, in TensorRT-LLM's default map
    split: str = (
        ""  # tensor parallel: "out" cuts B into rows (column-parallel), "in" cuts A into columns (row-parallel)
    )
    parts: tuple[
        str, ...
    ] = ()  # the linear layers of a Llama in it, in the order of B's rows; none: a Llama has it not

    def widths(self, config: ModelConfig) -> tuple[int, int] | None:
        """(d_in, d_out) of the whole module, on all ranks together; None where a Llama has no such module.

        attn_dense reads heads * head_dim. TensorRT-LLM's own table has hidden_size there (runtime/loraModule.cpp): the
        same in most models, but not in all."""
        if not self.parts:
            return None
        return config.shape(self.parts[0])[1], sum(self.part_sizes(config))

    def part_sizes(self, config: ModelConfig) -> list[int]:
        """d_out of each linear layer in it."""
        return [config.shape(part)[0] for part in self.parts]


MODULES = {
    module.id: module
    for module in (
        Module(0, "attn_qkv", "qkv_proj", "out", ("q_proj", "k_proj", "v_proj")),
        Module(1, "attn_q", "q_proj", "out", ("q_proj",)),
        Module(2, "attn_k", "k_proj", "out", ("k_proj",)),
        Module(3, "attn_v", "v_proj", "out", ("v_proj",)),
        Module(4, "attn_dense", "o_proj", "in", ("o_proj",)),
        Module(5, "mlp_h_to_4h", "gate_proj", "out", ("gate_proj",)),
        Module(6, "mlp_4h_to_h", "down_proj", "in", ("down_proj",)),
        Module(7, "mlp_gate", "up_proj", "out", ("up_proj",)),
        Module(8, "cross_attn_qkv", "", "out"),
        Module(9, "cross_attn_q", "", "out"),
        Module(10, "cross_attn_k", "", "out"),
        Module(11, "cross_attn_v", "", "out"),
        Module(12, "cross_attn_dense", "", "in"),
        Module(13, "moe_h_to_4h", "w1", "out"),
        Module(14, "moe_4h_to_h", "w2", "in"),
        Module(15, "moe_gate", "w3", "out"),
        Module(16, "moe_router", "gate"),
        Module(17, "mlp_router", ""),
        Module(18, "mlp_gate_up", "gate_up_proj", "out", ("up_proj", "gate_proj")),
        Module(19, "shared_expert_h_to_4h", "shared_expert.gate_proj", "out"),
        Module(20, "shared_expert_4h_to_h", "shared_expert.down_proj", "in"),
        Module(21, "shared_expert_gate", "shared_expert.up_proj", "out"),
        Module(22, "mamba_in_proj", "in_proj", "out"),
        Module(23, "mamba_out_proj", "out_proj", "in"),
        Module(24, "moe_latent_fc1", "fc1_latent_proj"),
        Module(25, "moe_latent_fc2", "fc2_latent_proj"),
    )
}

# The linear layers of a Llama, each by the module that has it to itself.
OF_LLAMA = {module.parts[0]: module for module in MODULES.values() if len(module.parts) == 1}
