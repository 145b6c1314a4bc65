"""What an export can be, as names: components, formats, dtypes and targets.

Without JAX, because they are choices of the command's flags.
"""

COMPONENTS = ("encoder", "two_towers", "decoder", "vlm", "hive")
FORMATS = ("huggingface", "big_vision", "state_dict")
# Versions of transformers.
TARGETS = ("v5", "v4")
# Of the exported tensors; weights/safetensors.py has their NumPy dtypes.
DTYPES = ("float32", "bfloat16", "float16")
