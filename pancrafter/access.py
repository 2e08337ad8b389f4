"""What may be read and how: allowed hosts and folders, and per host the credentials that are added while reading.

Hrefs come from catalogs, so from strangers. Records keep them unsigned; `Reader` says what GDAL opens for one, or what
a document is asked for with: a signature or headers that live in the worker's memory only. Nothing here reads pixels.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from pydantic import Field, model_validator

from pancrafter.errors import AccessError, InvalidSceneError, TransientReadError
from pancrafter.types import Record

REMOTE_SCHEMES = frozenset({"http", "https", "s3"})
"""Schemes of asset hrefs that are read; GDAL knows many more ways to reach a file, which catalogs must not use."""

SIGNING_TIMEOUT_S = 30.0
EXPIRY_MARGIN_S = 120.0
"""A signature is renewed this long before it runs out, so that a window read begun with it can end."""

MAX_REDIRECTS = 5
_HEADERS_OPTION = "GDAL_HTTP_HEADERS"
_PLAIN_HOST = re.compile(r"([^@\\]*@)?[\w.:\[\]-]+", re.ASCII)
"""User, host and port that all libraries read alike: of ``a\\@b`` some ask a and some b, others decode ``%31`` to 1."""
_SIGNED_FOR_S = 600.0  # where a signing service names no expiry
_REMEMBERED_S = 86_400.0  # after a signature ran out: files are still open with it, and `forget` must know of them

# An address with its query, or the query of what an error message names of one ("pan.tif?sig=..., band 1: failed"),
# without the punctuation after it. Addresses without a query are matched too: no part of a text is then looked through
# twice, and a stranger's text takes time in proportion to its length.
_SCHEME = r"\b[a-z][a-z0-9+.-]{0,20}://"
_REST = r"""(?:[^\s'"<>]*[^\s'"<>,;:.)\]])?"""
_ADDRESS_OR_QUERY = re.compile(
    rf"""({_SCHEME}[^\s?#'"<>]*)(\?{_REST})?|\?(?=[^\s'"<>?]{{0,2000}}=){_REST}""", re.IGNORECASE
)
_USERINFO = re.compile(rf"({_SCHEME})[^/\s@'\"<>]{{1,2000}}@", re.IGNORECASE)


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What commands a terminal, or shows a text in another order than it has; line breaks and tabs are harmless."""


def without_secrets(text: str) -> str:
    """The text without passwords, signatures and control characters: errors quote whole URLs and answers of servers."""
    return _USERINFO.sub(r"\1", _ADDRESS_OR_QUERY.sub(_without_query, without_controls(text)))


def said_by(error: Exception) -> str:
    """A message on one line, after the status of an answer, bounded, as servers answer with whole pages; no secrets."""
    status = getattr(error, "status_code", None)
    text = without_secrets(" ".join(f"{status or ''} {str(error) or type(error).__name__}".split()))
    text = text if len(text) <= 300 else f"{text[:300]} ..."
    closed = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    return f"{text}; a profile in PANCRAFTER_ACCESS gives a host its credentials" if closed else text


def without_controls(text: str) -> str:
    """The text with ``?`` for control characters, which must not reach a terminal from a stranger."""
    return _CONTROLS.sub("?", text)


def spelled_out(name: str) -> str:
    """A name with its control characters, and what is no Unicode, as codes: other names stay others."""
    plain = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", name)
    return plain.encode(errors="backslashreplace").decode()


def _without_query(found: re.Match[str]) -> str:
    address, query = found.groups()
    return found[0] if address and not query else f"{address or ''}?..."


_SECRET = frozenset({"headers", "signed"})
"""Kinds of profiles whose secrets travel as they are."""


class HostProfile(Record):
    """How to read from some hosts or buckets. Secrets are named, not held: files that only the reader opens."""

    match: tuple[str, ...] = Field(
        min_length=1,
        description="Host names, which mean https, or http://host or http://host:port, where secrets may go without "
        "encryption, or s3://bucket, as shell patterns.",
    )
    kind: Literal["anonymous", "aws", "headers", "signed"]
    aws_profile: str | None = Field(default=None, description="For aws: section of the AWS credentials file.")
    aws_region: str | None = None
    requester_pays: bool = Field(default=False, description="For aws: the reader pays for what it reads.")
    headers_file: str | None = Field(default=None, description="For headers: JSON file of HTTP headers to send.")
    sign_url: str | None = Field(
        default=None,
        description="For signed: service that is asked `SIGN_URL?href=...` and answers `href` and `msft:expiry`.",
    )

    @model_validator(mode="after")
    def _holds_what_its_kind_needs(self) -> HostProfile:
        needed = {"headers": {"headers_file"}, "signed": {"sign_url"}}.get(self.kind, set())
        known = needed or ({"aws_profile", "aws_region", "requester_pays"} if self.kind == "aws" else set())
        given = {name for name, value in self if name not in ("match", "kind") and value}
        if missing := needed - given:
            raise ValueError(f"kind {self.kind} needs {', '.join(missing)}; add it")
        if unused := sorted(given - known):
            raise ValueError(f"kind {self.kind} has no use for {', '.join(unused)}; remove it or choose another kind")
        return self


class Access(Record):
    """The access rules of a run."""

    roots: tuple[str, ...] = Field(
        default=(),
        description="Local folders assets may lie in; none: anywhere for local catalogs, nowhere for others.",
    )
    hosts: tuple[str, ...] = Field(default=(), description="Hosts that are trusted although their address is private.")
    allow_private: bool = Field(default=False, description="Read from private, loopback and link-local addresses.")
    allow_spending: bool = Field(default=False, description="Use profiles where the requester pays.")
    profiles: tuple[HostProfile, ...] = Field(default=(), description="The first that matches a host counts.")

    def trusting(self, source: str) -> Access:
        """These rules for the assets of one source: its host is trusted, and local files if it runs on this machine."""
        host = urlsplit(source).hostname
        here = host is None or any(address.is_loopback for address in _addresses(host, resolve=False))
        trusted: dict[str, Any] = {"hosts": self.hosts if host is None else (*self.hosts, host)}
        return self.model_copy(update=trusted | ({"roots": ("/",)} if here and not self.roots else {}))

    def fault(self, href: str, *, resolve: bool = False) -> str | None:
        """Why ``href`` must not be read, or None. ``resolve`` looks host names up, as reading must."""
        parts = urlsplit(href)
        if len(parts.scheme) > 1 and parts.scheme not in {"file", *REMOTE_SCHEMES}:
            return f"scheme {parts.scheme!r} is not read; expected a path, file, http, https or s3"
        if parts.scheme in ("http", "https"):
            if parts.hostname and not _PLAIN_HOST.fullmatch(parts.netloc):
                return (
                    f"libraries do not agree on host {parts.hostname}, expected letters, digits, '.' and '-'; write "
                    "letters of other scripts as xn--..., and @ in a password as %40"
                )
            return self._host_fault(parts.hostname or "", resolve=resolve)
        return None if parts.scheme == "s3" else self._path_fault(href)

    def _path_fault(self, href: str) -> str | None:
        path = unquote(urlsplit(href).path) if href.startswith("file:") else href
        if path.startswith(("/vsi", "<")) or "\0" in path:
            return "a GDAL virtual path is not read; expected a plain file"
        if urlsplit(href).netloc not in ("", "localhost"):
            return "a file on another machine is not read"
        real = os.path.realpath(path)
        if any(os.path.commonpath((real, os.path.realpath(root))) == os.path.realpath(root) for root in self.roots):
            return None
        allowed = ", ".join(self.roots) or "none, as the catalog is not local"
        return f"{real} lies outside the allowed folders ({allowed}); see PANCRAFTER_ACCESS"

    def _host_fault(self, host: str, *, resolve: bool) -> str | None:
        if not host:
            return "the URL names no host"
        if self.allow_private or any(fnmatchcase(host, known) for known in self.hosts):
            return None
        for address in _addresses(host, resolve=resolve):
            if not address.is_global:
                return f"host {host} has the private address {address}; allow it with PANCRAFTER_ACCESS if it is yours"
        return None

    def profile_of(self, href: str) -> HostProfile | None:
        """The profile that holds for ``href``.

        Raises:
            InvalidSceneError: Its secrets would go over http, which it does not name.
        """
        parts = urlsplit(href)
        found = next((one for one in self.profiles if any(_means(pattern, parts) for pattern in one.match)), None)
        if found is None or parts.scheme != "http" or found.kind not in _SECRET:
            return found
        if any("://" in pattern and _means(pattern, parts) for pattern in found.match):
            return found
        raise InvalidSceneError(
            f"{without_secrets(href)}: the access profile for {', '.join(found.match)} means https, and its secrets "
            "are not sent over http, where others can read them; put "
            f"http://{parts.hostname} into its match if they may be"
        )


def _means(pattern: str, parts: SplitResult) -> bool:
    """Whether a pattern of a profile is for an address."""
    if parts.scheme == "s3":
        return fnmatchcase(f"s3://{parts.netloc}", pattern)
    host = parts.hostname or ""
    if "://" not in pattern:
        return fnmatchcase(host, pattern)
    with_port = parts.netloc.rpartition("@")[2].lower()
    return any(fnmatchcase(f"{parts.scheme}://{place}", pattern) for place in (host, with_port))


OPEN_TO_ALL = Access(roots=("/",), allow_private=True)
"""For files that the user named himself."""


class Opened(NamedTuple):
    """What GDAL is given: a path or URL, and configuration options that hold for this file."""

    href: str
    options: dict[str, Any]  # Any: GDAL options of several types


class Reader:
    """Signs and authorises hrefs under some rules; keeps signatures in memory until shortly before they run out."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._signed: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def open(self, href: str) -> Opened:
        """What to open for ``href``.

        Raises:
            InvalidSceneError: The rules forbid it.
            AccessError: The file of a profile is not readable.
            TransientReadError: The signing service did not answer.
        """
        if fault := self.access.fault(href, resolve=True):
            raise InvalidSceneError(f"{without_secrets(href)}: {fault}")
        opened = self._authorised(href, self.access.profile_of(href))
        if urlsplit(opened.href).scheme not in ("http", "https"):
            return opened
        if self.access.allow_private and _HEADERS_OPTION not in opened.options:  # nothing to forbid, nothing to hide
            return opened
        return _after_redirects(opened, self.access)

    def _authorised(self, href: str, profile: HostProfile | None) -> Opened:
        address, headers = self.request(href)
        if headers:
            return Opened(address, {_HEADERS_OPTION: "\n".join(f"{name}: {value}" for name, value in headers.items())})
        return Opened(address, {} if profile is None else _gdal_options(profile, self.access, href))

    def request(self, href: str) -> tuple[str, dict[str, str]]:
        """What to ask an HTTP server for, and with which headers, to get ``href``; the rules are not asked.

        Raises:
            AccessError: The file of the profile is not readable.
            TransientReadError: The signing service did not answer.
        """
        profile = self.access.profile_of(href)
        if profile is not None and profile.kind == "signed":
            return self._sign(href, profile), {}
        return href, _headers(profile) if profile is not None and profile.kind == "headers" else {}

    def object_options(self, href: str) -> dict[str, Any]:  # Any: options of several types
        """Options of s3fs with which ``href``, an object in S3, is read.

        Raises:
            InvalidSceneError: The requester would pay, and this run may not spend.
        """
        profile = self.access.profile_of(href)
        if profile is None or profile.kind not in ("anonymous", "aws"):
            return {}
        if profile.kind == "anonymous":
            return {"anon": True}
        region = {} if profile.aws_region is None else {"region_name": profile.aws_region}
        return {
            "profile": profile.aws_profile,
            "requester_pays": _pays(profile, self.access, href),
            "client_kwargs": region,
        }

    def forget(self, href: str) -> bool:
        """Drop the signature of ``href`` because a server refused it; whether there was one."""
        with self._lock:
            return self._signed.pop(href, None) is not None

    def _sign(self, href: str, profile: HostProfile) -> str:
        with self._lock:
            signed, expires = self._signed.get(href, ("", 0.0))
        if time.time() < expires - EXPIRY_MARGIN_S:
            return signed
        assert profile.sign_url is not None
        signed, expires = _ask_to_sign(profile.sign_url, href)
        with self._lock:
            oldest = time.time() - _REMEMBERED_S
            self._signed = {known: pair for known, pair in self._signed.items() if pair[1] > oldest}
            self._signed[href] = (signed, expires)
        return signed


_READERS: dict[str, Reader] = {}
_READERS_LOCK = threading.Lock()


def reader_for(access: Access) -> Reader:
    """The reader of this process for some rules; tasks of one worker share its signatures."""
    key = access.model_dump_json()
    with _READERS_LOCK:
        return _READERS.setdefault(key, Reader(access))


def _after_redirects(opened: Opened, access: Access) -> Opened:
    """Where a server sends the reader in the end, each step under the rules; GDAL would follow it anywhere.

    Headers of a profile are secrets of its host and are not shown to another.
    """
    import requests

    href, options = opened
    for _ in range(MAX_REDIRECTS):
        lines = str(options.get(_HEADERS_OPTION, "")).splitlines()
        headers = {"Range": "bytes=0-0"} | dict(line.split(": ", 1) for line in lines)
        try:
            with requests.get(
                href, headers=headers, stream=True, allow_redirects=False, timeout=SIGNING_TIMEOUT_S
            ) as answer:
                target = answer.headers.get("Location") if answer.is_redirect else None
        except requests.RequestException as err:
            place = urlsplit(href)._replace(query="").geturl()  # a query may hold a signature
            advice = "check network and credentials, then try again"
            raise TransientReadError(f"{place} cannot be read: {type(err).__name__}; {advice}") from None
        if target is None:
            return Opened(href, options)
        scheme, before, href = urlsplit(href).scheme, urlsplit(href).netloc, urljoin(href, target)
        if fault := access.fault(href, resolve=True):
            raise InvalidSceneError(f"{before} redirects to {urlsplit(href).netloc}: {fault}")
        if urlsplit(href).netloc != before or (scheme, urlsplit(href).scheme) == ("https", "http"):
            options = {name: value for name, value in options.items() if name != _HEADERS_OPTION}
    raise InvalidSceneError(f"{urlsplit(href).netloc} redirects more than {MAX_REDIRECTS} times")


def _ask_to_sign(sign_url: str, href: str) -> tuple[str, float]:
    import requests

    try:
        answer = requests.get(f"{sign_url}?href={quote(href, safe='')}", timeout=SIGNING_TIMEOUT_S)
        answer.raise_for_status()
        body = answer.json()
        signed = str(body["href"])
    except (requests.RequestException, ValueError, KeyError, TypeError) as err:
        # The text of requests' errors holds the URL but no signature, as none was given yet.
        place = without_secrets(href)
        raise TransientReadError(f"signing service {sign_url} did not sign {place}: {type(err).__name__}") from None
    return signed, _expiry(body.get("msft:expiry"))


def _expiry(text: object) -> float:
    try:
        expires = datetime.fromisoformat(str(text))
        return expires.replace(tzinfo=expires.tzinfo or UTC).timestamp()
    except ValueError:
        return time.time() + EXPIRY_MARGIN_S + _SIGNED_FOR_S


def _headers(profile: HostProfile) -> dict[str, str]:
    try:
        read = json.loads(Path(str(profile.headers_file)).read_text(encoding="utf-8"))
        headers = {str(name): str(value) for name, value in read.items()}
    except (OSError, ValueError, AttributeError) as err:
        raise AccessError(
            f"access profile for {', '.join(profile.match)}: headers_file {profile.headers_file} is not readable as a "
            f"JSON object ({type(err).__name__}); mend the profile, or put the file where scenes are read"
        ) from None
    if any(end in text for header in headers.items() for text in header for end in "\r\n"):
        raise AccessError(f"{profile.headers_file}: a header holds a line break; mend the file")
    return headers


def _gdal_options(profile: HostProfile, access: Access, href: str) -> dict[str, Any]:
    if profile.kind == "anonymous":
        return {"AWS_NO_SIGN_REQUEST": "YES"}
    options = {"AWS_PROFILE": profile.aws_profile, "AWS_REGION": profile.aws_region}
    if _pays(profile, access, href):
        options["AWS_REQUEST_PAYER"] = "requester"
    return {name: value for name, value in options.items() if value is not None}


def _pays(profile: HostProfile, access: Access, href: str) -> bool:
    """Whether the requester pays; an error where he must not."""
    if profile.requester_pays and not access.allow_spending:
        raise InvalidSceneError(
            f"{without_secrets(href)}: the requester pays for this bucket and this run may not spend; set "
            "allow_spending in PANCRAFTER_ACCESS"
        )
    return profile.requester_pays


def _addresses(host: str, *, resolve: bool) -> Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Addresses of a host: written out in any spelling the system's resolver takes, known as local, or looked up."""
    bare = host.strip("[]")
    if bare.casefold().rstrip(".") == "localhost" or bare.casefold().endswith(".localhost"):
        yield ipaddress.ip_address("127.0.0.1")
        return
    numeric = ":" in bare or all(part.isalnum() and part[:1].isdigit() for part in bare.split("."))
    if not (resolve or numeric):  # 2130706433 and 0x7f.1 are addresses, too
        return
    try:
        found = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # reading it will say so
    for *_, place in found:
        address = ipaddress.ip_address(str(place[0]).split("%")[0])
        yield getattr(address, "ipv4_mapped", None) or address  # ``::ffff:127.0.0.1`` is seen for what it is
