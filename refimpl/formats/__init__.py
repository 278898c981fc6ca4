"""Adapters and models as other programs read and write them, in both directions.

files                     a folder that appears whole or not at all; arrays -> a safetensors file
peft, hf                  an Adapter -> a PEFT folder; a Model -> a Hugging Face folder
"""
