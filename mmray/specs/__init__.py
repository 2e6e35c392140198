"""One pydantic class per job kind, and how a file becomes one. Imports neither ray nor torch."""

from mmray.specs.embed import EmbedSpec
from mmray.specs.index import DuplicatesSpec, IndexSpec, SearchSpec
from mmray.specs.load import KINDS, JobSpec, load_embed_spec, load_spec, read_fields, spec_schema
from mmray.specs.train import TrainSpec

__all__ = [
    "KINDS",
    "DuplicatesSpec",
    "EmbedSpec",
    "IndexSpec",
    "JobSpec",
    "SearchSpec",
    "TrainSpec",
    "load_embed_spec",
    "load_spec",
    "read_fields",
    "spec_schema",
]
