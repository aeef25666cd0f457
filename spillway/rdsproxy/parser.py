"""PostgreSQL 18's own parser (libpg_query), as postgast binds it.

Imported by name, so without types: a field called `None` in postgast's stub file stops mypy altogether.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

postgast: Any = import_module("postgast")
#: The node classes of a parse tree.
pb: Any = import_module("postgast.pg_query_pb2")
#: A tree nested deeper than protobuf decodes: 100 messages, which is some 45 UNIONs or operators in a row.
TooDeep: type[Exception] = import_module("google.protobuf.message").DecodeError
#: What PostgreSQL would call a syntax error.
SyntaxFault: type[Exception] = postgast.PgQueryError
