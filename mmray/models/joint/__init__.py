"""The joint model: towers, fusion and heads, as one transformers `PreTrainedModel`.

A checkpoint folder is whole: networks are built from its `config.json` and filled from its
safetensors, so neither the folders that towers came from nor a pickle is ever needed.
"""

FROZEN = ("model-frozen.safetensors", "model.safetensors.index.json")
"""The files of a checkpoint that are the same at every step of a training."""
