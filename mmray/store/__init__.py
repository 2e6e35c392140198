"""The store: embeddings or captions as a versioned Delta table, written exactly once.

Read in this order: parts (files and receipts), coverage (what is done), table (`Store`),
quarantine and liveness (what could not be done), commit (the one way in).
"""

from mmray.store.changes import Change, Outcome
from mmray.store.commit import Committer
from mmray.store.coverage import Coverage, PartInfo
from mmray.store.parts import Quarantined, Receipt, write_part
from mmray.store.schema import StoreColumns, StoreMeta
from mmray.store.table import Store, StoreInfo, Version, staging_uri

__all__ = [
    "Change",
    "Committer",
    "Coverage",
    "Outcome",
    "PartInfo",
    "Quarantined",
    "Receipt",
    "Store",
    "StoreColumns",
    "StoreInfo",
    "StoreMeta",
    "Version",
    "staging_uri",
    "write_part",
]
