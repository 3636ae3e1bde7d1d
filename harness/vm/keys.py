# SPDX-License-Identifier: MIT
"""The SSH key of one template."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import paramiko


def new_key() -> tuple[str, str]:
    """A new key for SSH: (private, PEM; public, one authorized_keys line).

    RSA, because the guest only verifies: a few multiplications, where Ed25519 costs a clone 45 ms under TCG (measured;
    dropbear's arithmetic is portable C).
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def load_key(text: str) -> paramiko.PKey:
    """The private key that `new_key` made."""
    import paramiko

    return paramiko.RSAKey.from_private_key(io.StringIO(text))
