"""Removes secrets from all text that is stored or printed: passwords, tokens and the user part of addresses.

Every pattern takes time linear in the text. A name is matched from its first character only, because matches at each
dot or hyphen of one long word took minutes.
"""

import re
from pathlib import Path

_START = r"(?<![\w.-])"
_KEY = r"[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|api_?key|(?:access|private|secret)_?key"
_KEY += r"|(?:access|api|auth|bearer|private|refresh|secret)[_-]?token)"
_REFERENCE = r"(?!null\b|none\b|\?\?\?|\$\{|REDACTED)"  # a placeholder is not a secret
_UP_TO_AT = re.compile(r"(?<![^\s'\"])[^\s'\"]+@")
# scheme://user:password@host. A password may hold "@" and "/": everything up to the last "@" is removed.
_USER = re.compile(r"([a-z][a-z0-9+.-]{0,30}://)(?:[^\s/:@'\"]*:[^\s'\"]*@|[^\s/'\"]*@)", re.IGNORECASE)
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (rf"([?&;](?:{_KEY}|token|sig|[\w-]*signature)=)[^&;\s#'\"]+", r"\1REDACTED"),
        (r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",]+", r"\1REDACTED"),
        (r"(\bbearer\s+)[\w.~+/=-]{8,}", r"\1REDACTED"),
        # "key": "value"
        (rf"({_START}{_KEY}['\"]?\s*[:=]\s*(['\"])){_REFERENCE}[^'\"\n]+\2", r"\1REDACTED\2"),
    )
)
# key=value and key: value. A value that ends at a bracket or quote is an expression, which is matched and kept.
_ASSIGNED = re.compile(rf"({_START}{_KEY}\s*[:=] *){_REFERENCE}[^\s,'\"(){{}}\[\]]+((?=[\s,]|$))?", re.IGNORECASE)
# In source code only a literal is a secret: `api_key = read_key()` is none.
_IN_SOURCE = re.compile(
    rf"{_START}{_KEY}['\"]?\s*[:=]\s*['\"]{_REFERENCE}[^'\"\n]+['\"]|-----BEGIN [A-Z ]*PRIVATE KEY", re.IGNORECASE
)
_PRIVATE = (".pem", ".key", ".p12", ".pfx", ".kdbx")


def _without_users(text: str) -> str:
    """Removes the user information of addresses (RFC 3986, section 3.2.1)."""
    return _UP_TO_AT.sub(lambda found: _USER.sub(r"\1", found[0]), text)


def redact(text: str) -> str:
    """Removes each secret from a text.

    An address loses its user information. `REDACTED` replaces the value of a query parameter, header or setting with a
    secret name, such as `password` or `api_key`.
    """
    text = _without_users(text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return _ASSIGNED.sub(lambda found: found[0] if found[2] is None else f"{found[1]}REDACTED", text)


def redact_file(path: Path) -> None:
    """Redacts a text file in place; a missing file or one without a secret is not written."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (clean := redact(text)) != text:
        path.write_text(clean, encoding="utf-8")


def shows_secret(name: str, text: str) -> bool:
    """Whether source code or a config, given by its file name and text, contains a secret."""
    if _IN_SOURCE.search(text) is not None or _without_users(text) != text:
        return True
    return not name.endswith(".py") and redact(text) != text


def is_private(path: str) -> bool:
    """Whether a file is private by its name: hidden, such as `.env` and `.netrc`, or a key."""
    name = path.rpartition("/")[2]
    return name.startswith((".", "id_rsa", "id_ed25519")) or name.endswith(_PRIVATE)
