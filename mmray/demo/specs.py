"""The demo's five jobs, as `jobs/` shows them.

The first two store and index vectors of packaged models; the other three learn a model of the
demo's own, and store and index its vectors.
"""

from typing import Any

TARS = "s3://demo/pictures/*.tar"
MODEL = "s3://demo/models/joint"

EMBED: dict[str, Any] = {
    "job": "embed",
    "source": {"kind": "webdataset", "uri": TARS},
    "encoder": {
        "kind": "combined",
        "of": [
            {"kind": "packaged", "model": "zeroshot"},
            {"kind": "packaged", "model": "speech"},
        ],
    },
    "store": {"uri": "s3://demo/stores/pictures"},
    "keep": ["caption", "category", "speech_language"],
    "thumbnails": 96,
    "errors": {"max_fraction": 0.05},
}
INDEX: dict[str, Any] = {
    "job": "index",
    "store": EMBED["store"],
    "column": "image_embedding",
    "output": "s3://demo/indexes/pictures",
}
TRAIN: dict[str, Any] = {
    "job": "train",
    "data": {
        "source": EMBED["source"],
        "split": {"group": "caption", "test": 0.2},
    },
    "model": {
        "towers": {
            "image": {"kind": "packaged", "model": "efficientnet-lite0", "train": "frozen"},
            "text": {"kind": "packaged", "model": "minilm", "train": "frozen"},
            "audio": {"kind": "conv", "seconds": 4},
        },
        "heads": {"contrastive": {"loss": "infonce"}},
    },
    "train": {
        "epochs": 40,
        "lr": 1.0e-3,
        "early_stopping": {"metric": "val/retrieval_r10", "patience": 20},
    },
    "output": MODEL,
    "errors": {"max_fraction": 0.05},
}
JOINT_EMBED = EMBED | {
    "encoder": {"kind": "joint", "model": MODEL},
    "store": {"uri": "s3://demo/stores/joint"},
}
JOINT_INDEX = INDEX | {"store": JOINT_EMBED["store"], "output": "s3://demo/indexes/joint"}
