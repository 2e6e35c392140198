"""Identity of an encoder: one hash over all that changes its vectors, and over nothing else.

Files are hashed by content, so a hub id and a copied folder of the same weights agree.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Written by whoever saved the model; none of it changes an output. The dtype of the saved file is
# here too: the declared dtype decides, and it's an ingredient of its own.
_NOISE = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "_attn_implementation_autoset",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "id2label",
        "label2id",
        "problem_type",
        "use_cache",
        "gradient_checkpointing",
        "tokenizer_file",
        "special_tokens_map_file",
        "local_files_only",
    }
)


def digest(path: Path) -> str:
    """sha256 of a file's content, in hex; reads it in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def essential(config: Any) -> Any:
    """`config` without the fields that no output depends on, at every depth."""
    if isinstance(config, Mapping):
        return {key: essential(value) for key, value in config.items() if key not in _NOISE}
    if isinstance(config, list | tuple):
        return [essential(value) for value in config]
    return config


def fingerprint(details: Mapping[str, Any]) -> str:
    """32 hex digits over `details`, which must be JSON; the order of keys doesn't matter."""
    text = json.dumps(details, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
