"""Keeps secrets out of everything that is stored or printed: passwords, tokens and the user part of addresses."""

import re
from pathlib import Path

_KEY = r"[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|api_?key|(?:access|private|secret)_?key"
_KEY += r"|(?:access|api|auth|bearer|private|refresh|secret)[_-]?token)"
_REFERENCE = r"(?!null\b|none\b|\?\?\?|\$\{|REDACTED)"  # what stands for a value is no secret
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # scheme://user:password@host. A password may hold "@" and "/", so all up to the last "@" goes.
        # The bound on the scheme keeps the time linear: a file of one long word would take minutes.
        (r"([a-z][a-z0-9+.-]{0,30}://)(?:[^\s/:@'\"]*:[^\s'\"]*@|[^\s/'\"]*@)", r"\1"),
        (rf"([?&;](?:{_KEY}|token|sig|[\w-]*signature)=)[^&;\s#'\"]+", r"\1REDACTED"),
        (r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",]+", r"\1REDACTED"),
        (r"(\bbearer\s+)[\w.~+/=-]{8,}", r"\1REDACTED"),
        # "key": "value", key=value, key: value
        (rf"(\b{_KEY}['\"]?\s*[:=]\s*(['\"])){_REFERENCE}[^'\"\n]+\2", r"\1REDACTED\2"),
        (rf"(\b{_KEY}\s*[:=] *){_REFERENCE}[^\s,'\"(){{}}\[\]]+(?=[\s,]|$)", r"\1REDACTED"),
    )
)
# In source code only a text is a secret: `api_key = read_key()` is none.
_IN_SOURCE = re.compile(
    rf"{_PATTERNS[0][0].pattern}|\b{_KEY}['\"]?\s*[:=]\s*['\"]{_REFERENCE}[^'\"\n]+['\"]"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.IGNORECASE,
)
_PRIVATE = (".pem", ".key", ".p12", ".pfx", ".kdbx")


def redact(text: str) -> str:
    """The text with each secret that it shows removed.

    An address loses its user information (RFC 3986, section 3.2.1). The value of a query parameter, of a header or of
    a setting whose name says that it is secret becomes `REDACTED`.
    """
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_file(path: Path) -> None:
    """Redact a text file in place; a file that is missing or shows no secret is not touched."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (clean := redact(text)) != text:
        path.write_text(clean, encoding="utf-8")


def shows_secret(name: str, text: str) -> bool:
    """Whether source code or a config, given by its file's name and its text, shows a secret."""
    return _IN_SOURCE.search(text) is not None or (not name.endswith(".py") and redact(text) != text)


def is_private(path: str) -> bool:
    """Whether a file of this name is private by custom: hidden, such as `.env` and `.netrc`, or a key."""
    name = path.rpartition("/")[2]
    return name.startswith((".", "id_rsa", "id_ed25519")) or name.endswith(_PRIVATE)
