"""A throwaway certificate authority for TLS tests, with certificates for a broker and a client."""

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

from mqtool.broker.embedded.sockets.listener import Tls

_SETTINGS = """\
[req]
distinguished_name = name
x509_extensions = authority
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[signed]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Authority(NamedTuple):
    """The PEM files of a test CA, valid for two days. The broker's certificate is for localhost, 127.0.0.1 and ::1.

    Attributes:
        ca: the authority's certificate, for clients to trust.
        cert, key: the broker's certificate and key.
        client_cert, client_key: a client's certificate and key.
    """

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path

    def tls(self, *, client_certificates: bool = False) -> Tls:
        """Return the `tls` setting for a broker: `EmbeddedBroker(tls=authority.tls())`.

        Args:
            client_certificates: require clients to present a certificate issued by this authority.
        """
        return Tls(self.cert, self.key, self.ca if client_certificates else None)

    def context(self, *, client_certificate: bool = False) -> ssl.SSLContext:
        """Return a TLS context for a client, as in `pika.SSLOptions(authority.context(), "localhost")`.

        Args:
            client_certificate: present the client's certificate.
        """
        context = ssl.create_default_context(cafile=str(self.ca))
        if client_certificate:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


def new_authority(directory: Path) -> Authority:
    """Create an authority and its certificates in a directory, using the `openssl` command.

    Raises:
        FileNotFoundError: openssl is not installed.
        subprocess.CalledProcessError: openssl fails.
    """
    (directory / "settings").write_text(_SETTINGS)

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=directory, check=True, capture_output=True)

    new = "req -config settings -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    openssl(f"{new} -x509 -days 2 -subj /CN=throwaway -keyout ca.key -out ca.pem")
    for name, subject in (("broker", "localhost"), ("client", "client")):
        openssl(f"{new} -subj /CN={subject} -keyout {name}.key -out {name}.request")
        openssl(
            f"x509 -req -in {name}.request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile settings "
            f"-extensions signed -out {name}.pem"
        )
    return Authority(*(directory / name for name in ("ca.pem", "broker.pem", "broker.key", "client.pem", "client.key")))
