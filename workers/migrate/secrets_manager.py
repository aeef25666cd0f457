"""User names and passwords from AWS Secrets Manager."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config

from workers.runtime.failures import WorkerError

CURRENT, PENDING = "AWSCURRENT", "AWSPENDING"
#: Through a VPC endpoint an answer takes milliseconds; without one the network swallows the call.
_CONFIG = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 4, "mode": "standard"})


class SecretError(WorkerError):
    """A secret cannot be read or holds something else; the message never quotes it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who logs in, and with what."""

    user: str
    password: str = field(repr=False)


class SecretsManager:
    """Reads secrets of the form that RDS writes: JSON with username and password."""

    def __init__(self) -> None:
        self._client: Any = boto3.client("secretsmanager", config=_CONFIG)

    def current(self, secret: str) -> Credentials:
        """The credentials that are in use. Raises SecretError, and botocore's errors where it cannot be read."""
        return self._read(secret, CURRENT)

    def pending(self, secret: str) -> Credentials | None:
        """Those that a rotation is bringing in, if it is under way."""
        try:
            return self._read(secret, PENDING)
        except self._client.exceptions.ResourceNotFoundException:
            return None

    def _read(self, secret: str, stage: str) -> Credentials:
        text = self._client.get_secret_value(SecretId=secret, VersionStage=stage).get("SecretString", "")
        try:
            found = json.loads(text)
            credentials = Credentials(str(found["username"]), str(found["password"]))
        except (ValueError, TypeError, KeyError):
            credentials = Credentials("", "")
        if not (credentials.user and credentials.password):
            # Without a cause, which would quote what was there.
            raise SecretError(f"{secret}: expected JSON with username and password ({stage})")
        return credentials
