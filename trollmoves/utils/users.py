"""The user of this process, for texts about missing permissions."""

from __future__ import annotations

import errno
import os
import pwd


def this_user() -> str:
    """Return the name and the number of the user of this process; of one without a name, the number twice."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    return f"{name} (uid {uid})"


def permission_remedy(number: int | None, permission: str) -> str:
    """Return the end of an error text for an errno: the permission that this user needs; empty for another errno."""
    return f"; {this_user()} needs {permission} permission" if number in (errno.EACCES, errno.EPERM) else ""
