"""From files to validated objects: what config.py, weights.py and adapter.py stand on. Not part of the reading path.

findings, json_file, safetensors_file    any bytes -> values, or one line that says what is wrong
families, rope_scaling                   which config.json is supported, and what is refused by name
checkpoint, conversion                   the tensors of a base model, mapped or converted
peft_config, peft_keys, peft_selection, peft_tensors    the same for a PEFT folder
"""
