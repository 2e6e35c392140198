"""One pydantic class per job kind, and how a file becomes one. Imports neither ray nor torch."""

from mmray.specs.embed import EmbedSpec
from mmray.specs.load import KINDS, load_spec, read_fields, spec_schema

__all__ = ["KINDS", "EmbedSpec", "load_spec", "read_fields", "spec_schema"]
