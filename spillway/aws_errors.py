"""What AWS's errors mean to the person who reads them: what was asked of which resource, why not, and what to do."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from spillway.aws import is_local
from spillway.aws_permissions import denied, message_of, missing_action
from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

__all__ = ["code_of", "explained", "is_denied", "is_throttled", "missing_action"]

#: Error codes by meaning, without what stands before their last dot (SQS: AWS.SimpleQueueService.NonExistentQueue,
#: KMS.AccessDeniedException). "Common errors" of the services' API references, and those of SQS's operations.
#: What botocore retries as throttling is among them (a test compares).
THROTTLED = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "LimitExceededException",  # CloudWatch Logs: too many Insights queries at once
        "EC2ThrottledException",
        "OverLimit",  # SQS: 120,000 messages in flight
        "KmsThrottled",
        "SlowDown",
        "PriorRequestNotComplete",
    }
)
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
#: EC2 says RequestExpired for an expired session, too ("Error codes for the Amazon EC2 API").
SKEWED = frozenset({"RequestExpired", "RequestTimeTooSkewed", "RequestInTheFuture"})
WRONG_CREDENTIALS = frozenset(
    {
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "SignatureDoesNotMatch",
        "InvalidSignatureException",
        "InvalidAccessKeyId",
        "AuthFailure",
        "InvalidToken",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "OptInRequired",
        "SubscriptionRequiredException",
    }
)
DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "UnauthorizedOperation",
        "NotAuthorized",
        "AuthorizationError",
        "KmsAccessDenied",
    }
)
NO_QUEUE = frozenset({"NonExistentQueue", "QueueDoesNotExist"})
NOT_SUPPORTED = frozenset({"UnsupportedOperation", "InvalidAction", "NotImplemented", "UnknownOperationException"})

_CLOCK = re.compile(r"signature (expired|not yet current)|request has expired|not yet valid|too skewed", re.IGNORECASE)
_REGION = re.compile(r"\.(?P<region>[a-z]{2,}(?:-[a-z]+)+-\d+)\.")

_LOG_IN = "Log in again, such as by `aws sso login`; --profile names another profile."
_REFUSALS = (
    (
        SKEWED,
        "AWS refused {operation}: {message}.",
        "Either this machine's clock is wrong (AWS takes five minutes off), or the login has expired.",
    ),
    (EXPIRED, "The AWS credentials have expired ({operation}).", _LOG_IN),
    (
        WRONG_CREDENTIALS,
        "AWS does not accept the credentials ({operation}: {message}).",
        "Check --profile, AWS_PROFILE, and AWS_ACCESS_KEY_ID with its session token.",
    ),
    (
        THROTTLED,
        "AWS throttles {operation}, also after several tries with growing pauses ({code}).",
        "Wait for a minute; a redrive goes on with --resume, slower with --rate.",
    ),
    (
        NO_QUEUE,
        "{operation}: the queue does not exist (any more) in this region, or these credentials may not see it.",
        "`spillway dlq list` shows those there are.",
    ),
    (NOT_SUPPORTED, "{operation} is not supported here: {message}.", ""),
)


def code_of(error: ClientError) -> str:
    """The error's code, without the service's prefix."""
    return re.split("[.#]", str(error.response.get("Error", {}).get("Code", "")))[-1]


def is_denied(error: Exception) -> bool:
    """Whether AWS refused the call because the caller may not make it."""
    from botocore.exceptions import ClientError  # noqa: PLC0415

    return isinstance(error, ClientError) and code_of(error) in DENIED


def is_throttled(error: Exception) -> bool:
    """Whether AWS refused the call because there were too many."""
    from botocore.exceptions import ClientError  # noqa: PLC0415

    return isinstance(error, ClientError) and code_of(error) in THROTTLED


def explained(error: Exception) -> SpillwayError:
    """`error`, one of botocore's, in words for a person. The original stays its `__cause__` if raised from it."""
    from botocore import exceptions as of  # noqa: PLC0415

    if isinstance(error, of.ClientError):
        return _refused(error)
    if isinstance(error, of.ConnectionError | of.HTTPClientError):
        return _unreached(error)
    said = " ".join(str(error).split()).rstrip(".") + "."
    for kinds, meaning, hint in _meanings():
        if isinstance(error, kinds):
            return SpillwayError(f"{meaning} {said}", hint)
    return SpillwayError(f"AWS could not be asked: {said}")


class _Meaning(NamedTuple):
    kinds: tuple[type[Exception], ...]
    meaning: str
    hint: str


def _meanings() -> tuple[_Meaning, ...]:
    """The errors that botocore raises before anything is sent."""
    from botocore import exceptions as of  # noqa: PLC0415

    return (
        _Meaning(
            (of.NoCredentialsError, of.NoAuthTokenError),
            "There are no AWS credentials:",
            "Log in, such as by `aws sso login`, or name a --profile that has some.",
        ),
        _Meaning((of.SSOError, of.TokenRetrievalError), "The AWS login has expired, or there was none:", _LOG_IN),
        _Meaning(
            (of.LoginError,), "The AWS login has expired, or there was none:", "Log in again, such as by `aws login`."
        ),
        _Meaning(
            (of.PartialCredentialsError, of.CredentialRetrievalError, of.RefreshWithMFAUnsupportedError),
            "The AWS credentials cannot be used:",
            "Check the profile in ~/.aws/config, or log in again.",
        ),
        _Meaning(
            (of.ProfileNotFound, of.ConfigNotFound, of.ConfigParseError, of.InvalidConfigError),
            "AWS is not configured for this:",
            "Check --profile, AWS_PROFILE and ~/.aws/config.",
        ),
        _Meaning(
            (of.NoRegionError, of.InvalidRegionError, of.UnknownRegionError, of.UnknownEndpointError),
            "There is no such AWS region:",
            "Check --region and AWS_REGION; eu-west-1 is one.",
        ),
        _Meaning(
            (of.ParamValidationError,),
            "AWS was to be asked something that cannot be:",
            "This was not expected; run it again with --debug to see where it happened.",
        ),
    )


def _unreached(error: Exception) -> SpillwayError:
    """`error`: nobody answered, or the connection broke."""
    from botocore import exceptions as of  # noqa: PLC0415

    details = getattr(error, "kwargs", {})
    url = urlsplit(str(details.get("endpoint_url") or ""))
    host = url.hostname
    if isinstance(error, of.ProxyConnectionError):
        said, hint = f"{error}.", "Check HTTPS_PROXY and NO_PROXY."
    elif host is None:
        said, hint = f"The connection to AWS broke: {str(error).rstrip('.')}.", "Check the network; try again."
    elif is_local(url.geturl()):
        said = f"The local stack does not answer at {url.scheme}://{url.netloc}."
        hint = "Does `spillway up` still run? If not, start it again."
    elif isinstance(error, of.SSLError):
        said = f"The certificate of {host} is not accepted: {details.get('error')}."
        hint = "A proxy that inspects traffic needs its authority in AWS_CA_BUNDLE."
    elif (unknown := _unknown_region(host)) is not None:
        said, hint = unknown
    elif isinstance(error, of.ConnectionClosedError):
        said, hint = f"{host} broke the connection.", "Try again."
    else:
        said, hint = f"{host} does not answer.", "Check the network, and --region."
    return SpillwayError(said, hint)


def _unknown_region(host: str) -> tuple[str, str] | None:
    """What to say if `host` names a region that botocore does not know."""
    from botocore.session import Session  # noqa: PLC0415

    if (found := _REGION.search(host)) is None:
        return None
    region, session = found["region"], Session()
    known = [
        one
        for partition in session.get_available_partitions()
        for one in session.get_available_regions("sqs", partition)
    ]
    if region in known:
        return None
    near = get_close_matches(region, known, n=1)
    return (
        f"{host} does not answer, and {region!r} is no AWS region known here.",
        f"Did you mean {near[0]!r}? " * bool(near) + "Check --region and AWS_REGION.",
    )


def _refused(error: ClientError) -> SpillwayError:
    code, operation = code_of(error), error.operation_name
    message = message_of(error) or code or "no reason given"
    if code in DENIED:
        return denied(error)
    if code in WRONG_CREDENTIALS and _CLOCK.search(message):
        code = "RequestExpired"  # what EC2 calls it
    for codes, meaning, hint in _REFUSALS:
        if code in codes:
            return SpillwayError(meaning.format(operation=operation, message=message, code=code), hint)
    return SpillwayError(f"AWS refused {operation}: {message} ({code or 'no code'}).")
