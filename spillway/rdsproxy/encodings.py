"""PostgreSQL's names of client encodings, as Python's codecs."""

from __future__ import annotations

import codecs

#: What is not found by leaving out all but letters and digits (PostgreSQL manual, "Character Set Support").
_NAMES = {
    "abc": "cp1258",
    "alt": "cp866",
    "koi8": "koi8_r",
    "koi8r": "koi8_r",
    "koi8u": "koi8_u",
    "mskanji": "shift_jis",
    "shiftjis": "shift_jis",
    "eucjis2004": "euc_jis_2004",
    "shiftjis2004": "shift_jis_2004",
    "sqlascii": "latin1",  # any bytes; only ASCII has a meaning in SQL
    "tcvn": "cp1258",
    "vscii": "cp1258",
    "win": "cp1251",
}


def decodable(text: bytes, codec: str | None = None) -> bool:
    """Whether `text` is text in a client's encoding; None: UTF-8."""
    if text.isascii():
        return True
    try:
        text.decode(codec or "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def python_codec(client_encoding: str) -> str | None:
    """The codec of a `client_encoding`; None for UTF-8 and for what Python does not know."""
    name = "".join(filter(str.isalnum, client_encoding.lower()))
    name = _NAMES.get(name, name)
    for candidate in (name, name.replace("windows", "cp").replace("win", "cp"), name.replace("iso8859", "iso8859_")):
        try:
            found = codecs.lookup(candidate).name
        except LookupError:
            continue
        return None if found == "utf-8" else found
    return None
