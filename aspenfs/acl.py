"""POSIX access control lists, as Linux stores them in two extended attributes. Pure.

The kernel decides access; the filesystem keeps an ACL and its file's mode in step (setfacl changes
the mode, chmod changes the ACL) and gives a new file what its directory's default ACL says. The
meaning is that of POSIX.1e draft 17 as Linux has it; see acl(5). Each function names the function
of fs/posix_acl.c in the Linux kernel with which it must agree.
"""

from __future__ import annotations

import errno
import re
import stat
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from aspenfs.errors import FilesystemError

ACCESS_XATTR: Final = b"system.posix_acl_access"
DEFAULT_XATTR: Final = b"system.posix_acl_default"

# Tags and the version: include/uapi/linux/posix_acl.h and posix_acl_xattr.h.
USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
UNDEFINED_ID: Final = 0xFFFFFFFF

_VERSION: Final = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")

_NAMED = frozenset((USER, GROUP))
_LETTERS = {USER_OBJ: "u", USER: "U", GROUP_OBJ: "g", GROUP: "G", MASK: "m", OTHER: "o"}
# The order of the entries. Entries for named users and groups need a mask.
_SHAPE = re.compile("ugo|uU*gG*mo")


class Entry(NamedTuple):
    """``perm`` is rwx as 4, 2, 1; ``id`` is UNDEFINED_ID unless the tag is USER or GROUP."""

    tag: int
    perm: int
    id: int = UNDEFINED_ID


Acl = tuple[Entry, ...]
"""A valid ACL in its stored order, or the empty tuple for none."""


def parse(value: bytes) -> Acl:
    """Read the value of one of the two attributes, as posix_acl_from_xattr and posix_acl_valid do.

    A header without entries is no ACL: setting it removes the attribute.

    Raises:
        FilesystemError: EOPNOTSUPP if the version is not 2; EINVAL if the value is not a valid ACL.
    """
    if len(value) < _HEADER.size:
        raise FilesystemError(errno.EINVAL, f"an ACL of {len(value)} bytes")
    (version,) = _HEADER.unpack_from(value)
    if version != _VERSION:
        raise FilesystemError(errno.EOPNOTSUPP, f"ACL version {version}")
    body = value[_HEADER.size :]
    if len(body) % _ENTRY.size:
        raise FilesystemError(errno.EINVAL, "an ACL with a part of an entry")
    acl = tuple(
        Entry(tag, perm, id_ if tag in _NAMED else UNDEFINED_ID)
        for tag, perm, id_ in _ENTRY.iter_unpack(body)
    )
    if acl:
        _validate(acl)
    return acl


def encode(acl: Sequence[Entry]) -> bytes:
    """Return the attribute value of an ACL, as posix_acl_to_xattr does."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def mode_from_acl(acl: Acl, mode: int) -> int:
    """Return ``mode`` with the permission bits of an access ACL (posix_acl_equiv_mode).

    The group bits show the mask if there is one, else the owning group's entry.
    """
    perms = {entry.tag: entry.perm for entry in acl if entry.tag not in _NAMED}
    group = perms.get(MASK, perms[GROUP_OBJ])
    return _with_permissions(mode, perms[USER_OBJ] << 6 | group << 3 | perms[OTHER])


def equivalent_to_mode(acl: Acl) -> bool:
    """Return whether the mode says all that the ACL says, so that the ACL need not be stored.

    It is the return value of posix_acl_equiv_mode.
    """
    return all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in acl)


def chmod(acl: Acl, mode: int) -> Acl:
    """Return an access ACL with the permission bits of a new mode (posix_acl_chmod).

    The group bits go to the mask if there is one, and then the owning group's entry stays.
    """
    return _replace(acl, _class_permissions(acl, mode))


def inherit(default_acl: Acl, mode: int) -> tuple[Acl | None, int]:
    """Return the access ACL and the mode of a file made under a default ACL (posix_acl_create).

    Both allow what ``mode`` and ``default_acl`` allow. Do not take the umask off ``mode`` first:
    the default ACL stands in its place. A symbolic link has no ACL; a new directory gets
    ``default_acl`` itself as its default ACL, too.

    Returns:
        The access ACL, or None if the mode says all that it says; and the mode.
    """
    allowed = _class_permissions(default_acl, mode)
    masked = {
        entry.tag: entry.perm & allowed[entry.tag] for entry in default_acl if entry.tag in allowed
    }
    acl = _replace(default_acl, masked)
    return None if equivalent_to_mode(acl) else acl, mode_from_acl(acl, mode)


def _validate(acl: Acl) -> None:
    shape = "".join(_LETTERS.get(entry.tag, "?") for entry in acl)
    if not _SHAPE.fullmatch(shape):
        raise FilesystemError(errno.EINVAL, "an ACL whose entries are wrong or out of order")
    if any(entry.perm > stat.S_IRWXO for entry in acl):
        raise FilesystemError(errno.EINVAL, "an ACL with unknown permissions")
    if any(entry.tag in _NAMED and entry.id == UNDEFINED_ID for entry in acl):
        raise FilesystemError(errno.EINVAL, "an ACL entry that names nobody")


def _class_permissions(acl: Acl, mode: int) -> dict[int, int]:
    """Return, by tag, the permissions of the three classes of a mode: owner, group, other."""
    group_class = MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
    return {
        USER_OBJ: (mode & stat.S_IRWXU) >> 6,
        group_class: (mode & stat.S_IRWXG) >> 3,
        OTHER: mode & stat.S_IRWXO,
    }


def _replace(acl: Acl, perms: dict[int, int]) -> Acl:
    return tuple(entry._replace(perm=perms.get(entry.tag, entry.perm)) for entry in acl)


def _with_permissions(mode: int, permissions: int) -> int:
    return mode & ~0o777 | permissions
