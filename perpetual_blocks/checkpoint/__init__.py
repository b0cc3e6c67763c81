"""Checkpoints: the saved document, its JSON, its digest and its signature."""

from perpetual_blocks.checkpoint.codec import copy_json, digest, to_json
from perpetual_blocks.checkpoint.document import Checkpoint, compare
from perpetual_blocks.checkpoint.signature import Signer

__all__ = ["Checkpoint", "Signer", "compare", "copy_json", "digest", "to_json"]
