"""Addresses of files and items without what grants access to them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SIGNATURE = re.compile(
    r"(?i)^(x-(amz|goog|oss|cos)-.*|q-sign-.*|q-ak|q-key-time|q-header-list|q-url-param-list|q-signature|ossaccesskeyid"
    r"|awsaccesskeyid|googleaccessid|signature|expires|key-pair-id|policy|token|access_token"
    r"|sig|se|sp|sv|sr|st|spr|skoid|sktid|skt|ske|sks|skv)$"
)
"""Query parameters of signing schemes: AWS, Google, Azure, CloudFront, Alibaba, Tencent."""

_KEYS = frozenset((
    "accesstoken", "auth", "authorization", "apikey", "api_key", "api-key", "key", "password", "pwd", "secret",
    "session", "security-token", "hdnts", "hmac", "jwt"
))  # fmt: skip


def scheme_of(href: str) -> str:
    """What an address begins with, as browsers read it; nothing for a path and for what is no address."""
    try:
        return urlsplit(href).scheme
    except ValueError:
        return ""


def unsigned(href: str) -> str:
    """``href`` without the query parameters of signing schemes, for reading, which signs it anew.

    What does not expire, such as an API key or a password, stays: nobody could add it again for reading.
    """
    parts = urlsplit(href)
    if not parts.query:
        return href
    kept = [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if not _SIGNATURE.match(key)]
    return urlunsplit(parts._replace(query=urlencode(kept)))


def public(href: str) -> str:
    """``href`` without anything that grants access, for publishing: user info, and a query with a signature or key."""
    if "://" not in href:
        return href
    try:
        parts = urlsplit(href)
    except ValueError:  # nobody gets anywhere by it
        return ""
    host = parts.netloc.rpartition("@")[2] if parts.scheme not in {"abfs", "abfss"} else parts.netloc
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    grants = any(_SIGNATURE.match(name) or name.casefold() in _KEYS for name in names)
    return urlunsplit(parts._replace(netloc=host, query="" if grants else parts.query))
