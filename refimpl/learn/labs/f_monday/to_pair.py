"""Lab F: an adapter as TensorRT-LLM's executor takes it, two arrays.

loracle learn check f      is it right?
loracle learn hint f       a hint; there are three
"""

# The numbers of the modules, from TensorRT-LLM's cpp/include/tensorrt_llm/runtime/loraModule.h.
MODULE_IDS = {
    "attn_q": 1,
    "attn_k": 2,
    "attn_v": 3,
    "attn_dense": 4,
    "mlp_h_to_4h": 5,
    "mlp_4h_to_h": 6,
    "mlp_gate": 7,
}


def to_pair(lora, lora_alpha, use_rslora):
    """Return (lora_weights, lora_config) of an adapter.

    lora        {(layer, name): (A [r, d_in], B [d_out, r])}, both float32; name is one of q_proj, k_proj, v_proj,
                o_proj, gate_proj, up_proj, down_proj
    lora_alpha  a number
    use_rslora  whether the scale is alpha / sqrt(r) in place of alpha / r

    lora_weights  float32 [1, rows, width]: in each row A, then B with the scale in it, each row by row, and then zeros
                  up to the width of the longest row
    lora_config   int32 [1, rows, 3]: of each row the module's number, the layer, and r

    There is one row for each module of each layer, in any order.
    """
    raise NotImplementedError
