"""TLS before a PostgreSQL server that has none: the wheel's is built without it.

A client that wants TLS says so first, and then speaks it on the same connection; this answers, takes the TLS off, and
passes on what is within.
"""

import socket
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
GSS_REQUEST = bytes.fromhex("0000000804d21630")


class Authority:
    """Signs certificates.

    Attributes:
        certificate: Its own, in a file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        self.certificate = folder / "authority.pem"
        self.certificate.write_bytes(_pem(self._sign(self._name, self._key.public_key(), None)))

    def server_context(self, host: str) -> ssl.SSLContext:
        """What a server needs that shows a certificate for this host."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        file = self._folder / f"{host}.pem"
        file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, *private) + _pem(self._sign(name, key.public_key(), host))
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["postgresql"])
        context.load_cert_chain(file)
        return context

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, host: str | None) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class TlsFront:
    """Listens on the loopback address, and passes on to a server's socket.

    Attributes:
        connections: How many came through.
        encrypted: How many of them with TLS.

    Args:
        path: Of the server's socket.
        context: None for a server that has no TLS.
    """

    def __init__(self, path: str, context: ssl.SSLContext | None) -> None:
        self._path = path
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = self.encrypted = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):  # a client that refuses the certificate goes away
            first = client.recv(8, socket.MSG_WAITALL)
            while first in (SSL_REQUEST, GSS_REQUEST):
                if first == SSL_REQUEST and self._context is not None:
                    client.sendall(b"S")
                    client = self._context.wrap_socket(client, server_side=True)
                    first = client.recv(8)
                else:
                    client.sendall(b"N")
                    first = client.recv(8, socket.MSG_WAITALL)
            if not first:
                return
            self.connections += 1
            self.encrypted += isinstance(client, ssl.SSLSocket)
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._path)
            server.sendall(first)
            threading.Thread(target=_pass_on, args=(server, client), daemon=True).start()
            _pass_on(client, server)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
