"""Certificate authorities that come as text (PEM) in an environment variable, where libpq wants a file.

For authorities that are in no bundle of the runtime: those of container images, and of private databases.
"""

from __future__ import annotations

import atexit
import os
import re
import tempfile
from functools import cache

_CERTIFICATE = r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----"


def tidied(text: str) -> str:
    """`text`, one or more certificates, with the line ends that PEM asks for; "" if it is something else.

    Command lines and parameter files turn line ends into spaces, or into a backslash and an n.
    """
    text = text.replace("\\r", "\n").replace("\\n", "\n").strip()
    if not re.fullmatch(rf"(?:{_CERTIFICATE}\s*)+", text):
        return ""
    certificates = ("".join(body.split()) for body in re.findall(_CERTIFICATE, text))
    return "".join(
        "\n".join(("-----BEGIN CERTIFICATE-----", *re.findall(".{1,64}", certificate), "-----END CERTIFICATE-----", ""))
        for certificate in certificates
    )


@cache
def file_with(text: str) -> str:
    """The path of a file with the certificates of `text`: written once, for this user only, gone with the process."""
    handle, path = tempfile.mkstemp(prefix="spillway-ca-", suffix=".pem")
    atexit.register(os.unlink, path)
    with open(handle, "w", encoding="ascii") as file:  # noqa: PTH123  (what mkstemp has opened)
        file.write(tidied(text))
    return path
