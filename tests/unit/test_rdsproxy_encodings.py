"""Every client encoding of PostgreSQL that Python can read is read."""

from __future__ import annotations

import pytest

from spillway.rdsproxy.encodings import python_codec


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("UTF8", None),
        ("unicode", "utf-8"),
        ("'utf-8'", None),
        ("", None),
        ("LATIN1", "iso8859-1"),
        ("latin-9", "iso8859-15"),
        ("ISO_8859_5", "iso8859-5"),
        ("ISO88592", "iso8859-2"),
        ("WIN1252", "cp1252"),
        ("windows-1250", "cp1250"),
        ("KOI8R", "koi8-r"),
        ("EUC_JP", "euc_jp"),
        ("SJIS", "shift_jis"),
        ("BIG5", "big5"),
        ("GB18030", "gb18030"),
        ("UHC", "cp949"),
        ("SQL_ASCII", "iso8859-1"),
        ("EUC_TW", None),
        ("MULE_INTERNAL", None),
    ],
)
def test_names(name: str, codec: str | None) -> None:
    assert python_codec(name) == (None if codec == "utf-8" else codec)
