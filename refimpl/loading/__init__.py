"""From files to validated objects: what config.py, weights.py and adapter.py stand on. Not part of the reading path.

diagnostics, json_file, safetensors_file    any bytes -> values, or one line that says what is wrong
families, rope_scaling                   which config.json is supported, and what is refused by name
checkpoint, conversion                   the tensors of a base model, mapped or converted
tensor                                   one of them: mapped, or quantised and made into numbers when it is read
quantization    which quantised checkpoints load: bitsandbytes_4bit, mxfp4, fp8_blocks, gptq_awq
stacked_experts                          tensors of all experts as one for each module, views
gguf_file, gguf_parts, gguf_config, gguf_names, gguf_tensors, gguf_tokenizer, dequantise    a GGUF base, as a folder
peft_config, peft_keys, peft_selection, peft_tensors    the same for a PEFT folder
blocks, vera_adapter, vera_projection, changed_base, table_copies    kinds of adapters that become plain LoRA
adapter_place, adapter_file, files_beside, base_names, hub    what people give for one, and what lies beside it
foreign_names, wrapped_names             names of tensors that other programs make of PEFT's
gguf_adapter, mlx_adapter, nemo_file, nemo_adapter, torchtune_adapter, adapter_pairs    other adapters, as PEFT's folder
tinker_adapter                           names and targets of one of them
"""
