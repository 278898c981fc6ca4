"""What NVIDIA published about LoRA in TensorRT-LLM, as code and data: the guide, and the adapters of its own tests."""
