"""Signatures: a checkpoint was written by somebody who knows the secret."""

import hashlib
import hmac
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs documents with HMAC-SHA256.

    A digest in the ledger finds what was damaged; a signature also finds what was written on purpose by somebody who
    can write to the storage and to the ledger.
    """

    key: bytes = field(repr=False)

    def sign(self, text: str) -> str:
        """The signature, in hexadecimal."""
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()

    def is_signed(self, text: str, signature: str) -> bool:
        """Whether this is the text's signature; it takes as long for a wrong one."""
        return hmac.compare_digest(self.sign(text).encode(), signature.encode(errors="replace"))
