"""Adapters and models as other programs read and write them, in both directions.

files                     a folder or file that appears whole or not at all; arrays -> a safetensors file
peft, hf                  an Adapter -> a PEFT folder; a Model -> a Hugging Face folder
gguf, mlx                 an Adapter -> a GGUF file, an mlx-lm folder (loading/ reads them)
plain_lora                what formats with A, B and one scale can hold, and how the rest gets into B
npy                       a .npy file of plain numbers, strictly
trtllm_modules            TensorRT-LLM's table of modules: ids, names, widths, how ranks share them
trtllm_pair               its two arrays, read, checked row by row, written
trtllm                    an Adapter <-> the two arrays; the scale goes into B
tensor_parallel           the part of an adapter that each rank of a group holds
trtllm_report             what that engine would reject of an adapter, or ignore
nemo                      recognised, and refused with the way to convert it
convert                   `loracle convert`: what lies at a path is recognised
"""
