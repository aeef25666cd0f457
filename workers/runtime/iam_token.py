"""RDS IAM authentication tokens, signed locally (AWS Signature Version 4, presigned URL form).

Importing botocore for this would cost more cold start than the whole rest of a worker; a test holds this signer
equal to botocore's generate_db_auth_token.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from workers.runtime.failures import WorkerError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How long RDS accepts a token for connecting (RDS user guide, "IAM database authentication").
TOKEN_LIFETIME_S = 900

_SERVICE = "rds-db"


def rds_token(
    host: str,
    port: int,
    user: str,
    region: str,
    *,
    now: datetime | None = None,
    env: Mapping[str, str] = os.environ,
) -> str:
    """A token to be used as the password of `user`. No network call is made.

    Takes the credentials Lambda puts into the environment, `env`. Raises WorkerError where there are none.
    """
    try:
        key_id, secret = env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
    except KeyError as missing:
        raise WorkerError(f"{missing.args[0]}: expected AWS credentials to sign an IAM token, got nothing") from None
    moment = now or datetime.now(UTC)
    day, stamp = f"{moment:%Y%m%d}", f"{moment:%Y%m%dT%H%M%SZ}"
    scope = f"{day}/{region}/{_SERVICE}/aws4_request"
    query = {
        "Action": "connect",
        "DBUser": user,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{key_id}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(TOKEN_LIFETIME_S),
    }
    if session_token := env.get("AWS_SESSION_TOKEN"):
        query["X-Amz-Security-Token"] = session_token
    query["X-Amz-SignedHeaders"] = "host"
    query_string = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in query.items())
    endpoint = f"{host}:{port}"
    request = "\n".join(("GET", "/", query_string, f"host:{endpoint}", "", "host", hashlib.sha256(b"").hexdigest()))
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{secret}".encode()
    for part in (day, region, _SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
    return f"{endpoint}/?{query_string}&X-Amz-Signature={signature}"
