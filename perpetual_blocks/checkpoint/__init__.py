"""Checkpoints: the saved document, its JSON and its digest."""

from perpetual_blocks.checkpoint.codec import copy_json, digest, to_json
from perpetual_blocks.checkpoint.document import Checkpoint, compare

__all__ = ["Checkpoint", "compare", "copy_json", "digest", "to_json"]
