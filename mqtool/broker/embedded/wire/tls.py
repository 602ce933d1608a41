"""TLS: the files that the broker shows itself with, and what it says of a client that does not get in."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("mqtool.broker.embedded")

# How OpenSSL names what comes from a client without TLS.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")


@dataclass(frozen=True)
class Tls:
    """PEM files for TLS.

    Attributes:
        cert: the broker's certificate, and those between it and its authority.
        key: its key, not encrypted.
        client_ca: the authority of the clients' certificates, which are required then; None to ask for none.
    """

    cert: str | Path
    key: str | Path
    client_ca: str | Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return what listeners need.

        Raises:
            OSError: a file cannot be read or is not PEM, or the key does not fit the certificate; in words.
        """
        for path in (self.cert, self.key, *([self.client_ca] if self.client_ca is not None else [])):
            _check(Path(path))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = _Handshake
        try:
            context.load_cert_chain(self.cert, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise OSError(f"the key {self.key} does not match the certificate {self.cert}") from error
            files = ", ".join(str(path) for path in (self.cert, self.key, self.client_ca) if path is not None)
            raise OSError(f"cannot use the TLS files {files}: one of them is not valid") from error
        return context


def _check(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read the TLS file {path}: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise OSError(f"the TLS file {path} is not in PEM form")
    # OpenSSL would ask for the password on the terminal.
    if b"ENCRYPTED" in content:
        raise OSError(f"the key {path} is encrypted; the broker needs one that is not")


class _Handshake(ssl.SSLObject):
    """Says in the log why a client does not get in: asyncio keeps that to itself."""

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            reason = "the client does not speak TLS" if error.reason in _NOT_TLS else _reason(error)
            log.warning("TLS handshake failed: %s", reason)
            raise


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
