"""A Ceph RADOS gateway with one storage daemon: a real S3 server, for ``infra.stack``.

It is the server that the tests of conditional writes, multipart uploads and publishers that race are made for: it
decides them atomically, which the usual test doubles of S3 do not.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.stack import Family

DEBIAN_PACKAGES = ("radosgw", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common")
PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-authtool", "monmaptool")
SPACE = 16 * 2**30
"""Most that the objects of a stack may take, bytes."""

_ALL = ("mon", "osd", "mgr", "mds")
_KEYS = {
    "mon.": ("mon",),
    "client.admin": _ALL,
    "osd.0": ("mon", "osd", "mgr"),
    "mgr.x": ("mon", "osd", "mds"),
    "client.rgw": ("mon", "osd"),
}


def is_installed() -> bool:
    """All of Ceph's programs that are needed are there."""
    return all(shutil.which(name) for name in PROGRAMS)


def start(family: Family, *, host: str, port: int, mon_port: int, access_key: str, secret_key: str) -> None:
    """Start monitor, manager, storage daemon and gateway, and make the user; the gateway listens when this returns.

    Raises:
        StackError: A step failed.
    """
    home = family.folder / "ceph"
    conf, keyring, cluster = home / "ceph.conf", home / "keyring", str(uuid.uuid4())
    for name in ("mon", "mgr", "osd", "rgw", "run", "crash"):
        (home / name).mkdir(parents=True)
    conf.write_text(_configuration(home, cluster, f"v2:{host}:{mon_port}", host, port))
    keyring.touch(mode=0o600)
    for name, rights in _KEYS.items():
        caps = [part for service in rights for part in ("--cap", service, "allow *")]
        family.run("ceph-key", ["ceph-authtool", str(keyring), "--gen-key", "-n", name, *caps])
    family.run(
        "ceph-monmap",
        ["monmaptool", "--create", "--addv", "a", f"[v2:{host}:{mon_port}]", "--fsid", cluster, str(home / "monmap")],
    )
    own = ["-c", str(conf)]
    tool = ["ceph", *own, "--connect-timeout", "60"]
    monitor = ["ceph-mon", *own, "-i", "a"]
    family.run("ceph-mon-mkfs", [*monitor, "--mkfs", "--monmap", str(home / "monmap"), "--keyring", str(keyring)])
    family.start("ceph-mon", [*monitor, "-f"])
    family.run("ceph-auth", [*tool, "auth", "import", "-i", str(keyring)])
    family.start("ceph-mgr", ["ceph-mgr", *own, "-i", "x", "-f"])
    disk = str(uuid.uuid4())
    family.run("ceph-osd-new", [*tool, "osd", "new", disk])
    family.run("ceph-osd-mkfs", ["ceph-osd", *own, "-i", "0", "--mkfs", "--osd-uuid", disk])
    family.start("ceph-osd", ["ceph-osd", *own, "-i", "0", "-f"])
    start_gateway(family)
    user = ["user", "create", "--uid=stack", "--display-name=stack"]
    keys = [f"--access-key={access_key}", f"--secret-key={secret_key}"]
    family.run("s3-user", ["radosgw-admin", *own, "-n", "client.rgw", *user, *keys])
    (family.folder / "s3-user.log").unlink()  # it prints the keys


def start_gateway(family: Family) -> None:
    """Start the gateway alone: the rest of the cluster is there."""
    family.start("s3", ["radosgw", "-c", str(family.folder / "ceph" / "ceph.conf"), "-n", "client.rgw", "-f"])


def _configuration(home: Path, cluster: str, monitor: str, host: str, port: int) -> str:
    """One copy of everything, on one node, in a sparse file; no pool waits for a second storage daemon."""
    values = {
        "fsid": cluster,
        "mon host": f"[{monitor}]",
        "mon initial members": "a",
        "public addr": host,
        "keyring": home / "keyring",
        "run dir": home / "run",
        "admin socket": f"{home}/run/$name.asok",
        "crash dir": home / "crash",
        "log to file": "false",
        "log to stderr": "true",
        "mon cluster log to file": "false",
        "osd pool default size": 1,
        "osd pool default min size": 1,
        "osd pool default pg num": 4,
        "osd pool default pgp num": 4,
        "osd pool default pg autoscale mode": "off",
        "osd crush chooseleaf type": 0,
        "osd objectstore": "bluestore",
        "bluestore block size": SPACE,  # a sparse file in the stack's folder
        "bluestore cache autotune": "false",
        "bluestore cache size": 128 * 2**20,
        "mon allow pool size one": "true",
        "mon warn on pool no redundancy": "false",
        "mon data avail crit": 1,
        "mon data": home / "mon",
        "mgr data": home / "mgr",
        "osd data": home / "osd",
        "mgr disabled modules": "rbd_support restful dashboard cephadm",
        "rgw data": home / "rgw",
        "rgw frontends": f"beast endpoint={host}:{port} tcp_nodelay=1",
    }
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
