"""What AWS's errors, and those of the way there, say to a person. The texts are AWS's own; accounts are made up."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import boto3
import pytest
from botocore import exceptions as of
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.retries.standard import ThrottledRetryableChecker

from spillway import aws
from spillway.aws_errors import THROTTLED, code_of, explained, is_denied, is_throttled, missing_action
from spillway.errors import SpillwayError
from spillway.stack import ports

ME = "arn:aws:sts::123456789012:assumed-role/on-call/ada"
QUEUE = "arn:aws:sqs:eu-west-1:123456789012:prod-orders-dlq"


def error(operation: str, code: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


#: operation, code, message -> the action, and what the sentence must have besides.
DENIALS: dict[str, tuple[str, str, str, str, str]] = {
    "SQS, which writes actions in small letters": (
        "ReceiveMessage",
        "AccessDenied",
        f"User: {ME} is not authorized to perform: sqs:receivemessage on resource: {QUEUE} because no identity-based "
        "policy allows the sqs:receivemessage action",
        "sqs:ReceiveMessage",
        f"AWS denied ReceiveMessage on {QUEUE}: these credentials lack sqs:ReceiveMessage.",
    ),
    "SQS, as it was": (
        "DeleteMessageBatch",
        "AccessDenied",
        "Access to the resource https://sqs.eu-west-1.amazonaws.com/ is denied.",
        "sqs:DeleteMessage",
        "AWS denied DeleteMessageBatch on https://sqs.eu-west-1.amazonaws.com/: these credentials lack "
        "sqs:DeleteMessage.",
    ),
    "SQS, a batch": (
        "ChangeMessageVisibilityBatch",
        "AccessDeniedException",
        f"User: {ME} is not authorized to perform: sqs:changemessagevisibility on resource: {QUEUE} because no "
        "identity-based policy allows the sqs:changemessagevisibility action",
        "sqs:ChangeMessageVisibility",
        QUEUE,
    ),
    "SQS's move task, which needs more than its own action": (
        "StartMessageMoveTask",
        "AccessDenied",
        f"User: {ME} is not authorized to perform: sqs:sendmessage on resource: {QUEUE}",
        "sqs:SendMessage",
        "AWS denied StartMessageMoveTask",
    ),
    "a key of one's own": (
        "ReceiveMessage",
        "KMS.AccessDeniedException",
        f"User: {ME} is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:eu-west-1:123456789012:key/k "
        "because no identity-based policy allows the kms:Decrypt action",
        "kms:Decrypt",
        "Allow it in the key's policy",
    ),
    "CloudWatch": (
        "GetMetricData",
        "AccessDenied",
        f"User: {ME} is not authorized to perform: cloudwatch:GetMetricData because no identity-based policy allows "
        "the cloudwatch:GetMetricData action",
        "cloudwatch:GetMetricData",
        "AWS denied GetMetricData: these credentials lack cloudwatch:GetMetricData.",
    ),
    "RDS": (
        "DescribeDBProxyTargets",
        "AccessDenied",
        f"User: {ME} is not authorized to perform: rds:DescribeDBProxyTargets on resource: "
        "arn:aws:rds:eu-west-1:123456789012:target-group:* because no identity-based policy allows the "
        "rds:DescribeDBProxyTargets action",
        "rds:DescribeDBProxyTargets",
        "target-group:*: these credentials lack",
    ),
    "EC2, bare": (
        "DescribeSubnets",
        "UnauthorizedOperation",
        "You are not authorized to perform this operation.",
        "ec2:DescribeSubnets",
        "AWS denied DescribeSubnets: these credentials lack ec2:DescribeSubnets.",
    ),
    "EC2, with an encoded message": (
        "DescribeSecurityGroupRules",
        "UnauthorizedOperation",
        f"You are not authorized to perform this operation. User: {ME} is not authorized to perform: "
        "ec2:DescribeSecurityGroupRules because no identity-based policy allows the ec2:DescribeSecurityGroupRules "
        f"action. Encoded authorization failure message: {'x' * 1000}",
        "ec2:DescribeSecurityGroupRules",
        "infra/operators.yaml",
    ),
    "Lambda": (
        "GetFunctionConfiguration",
        "AccessDeniedException",
        f"User: {ME} is not authorized to perform: lambda:GetFunctionConfiguration on resource: "
        "arn:aws:lambda:eu-west-1:123456789012:function:prod-orders:live because no identity-based policy allows the "
        "lambda:GetFunctionConfiguration action",
        "lambda:GetFunctionConfiguration",
        "function:prod-orders:live: these",
    ),
    "CloudWatch Logs": (
        "StartQuery",
        "AccessDeniedException",
        f"User: {ME} is not authorized to perform: logs:StartQuery on resource: "
        "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/rds/proxy/prod:log-stream: because no identity-based "
        "policy allows the logs:StartQuery action",
        "logs:StartQuery",
        "on arn:aws:logs",
    ),
    "an organization forbids it": (
        "RebootDBInstance",
        "AccessDenied",
        f"User: {ME} is not authorized to perform: rds:RebootDBInstance on resource: "
        "arn:aws:rds:eu-west-1:123456789012:db:prod with an explicit deny in a service control policy: "
        "arn:aws:organizations::123456789012:policy/o-1/service_control_policy/p-1",
        "rds:RebootDBInstance",
        "a service control policy forbids rds:RebootDBInstance.",
    ),
    "a boundary forbids it": (
        "RebootDBInstance",
        "AccessDenied",
        f"User: {ME} is not authorized to perform: rds:RebootDBInstance on resource: "
        "arn:aws:rds:eu-west-1:123456789012:db:prod with an explicit deny in a permissions boundary",
        "rds:RebootDBInstance",
        "a permissions boundary forbids rds:RebootDBInstance.",
    ),
    "one's own policy forbids it": (
        "SendMessage",
        "AccessDenied",
        f"User: {ME} is not authorized to perform: sqs:sendmessage on resource: {QUEUE} with an explicit deny in an "
        "identity-based policy",
        "sqs:SendMessage",
        "an identity-based policy forbids sqs:SendMessage.",
    ),
    "nothing known": ("DoSomething", "AccessDenied", "", "(the action of DoSomething)", "AWS denied DoSomething"),
}


@pytest.mark.parametrize("case", DENIALS)
def test_a_refusal_names_the_action(case: str) -> None:
    operation, code, message, action, expected = DENIALS[case]
    refused = error(operation, code, message)
    assert is_denied(refused)
    assert missing_action(refused) == action
    said = str(explained(refused))
    assert expected in said
    assert action in said
    assert "xxx" not in said
    assert ("operators.yaml" in said) == ("forbids" not in said and "kms:" not in said)


#: operation, code, message -> what is said.
REFUSALS = {
    ("ListStackResources", "ExpiredToken", "The security token included in the request is expired"): (
        "The AWS credentials have expired (ListStackResources).",
        "aws sso login",
    ),
    ("ReceiveMessage", "ExpiredTokenException", ""): ("have expired (ReceiveMessage)", "aws sso login"),
    ("DescribeSubnets", "RequestExpired", "Request has expired."): ("Request has expired.", "clock is wrong"),
    (
        "ReceiveMessage",
        "InvalidSignatureException",
        "Signature expired: 20261121T220000Z is now earlier than 20261121T223500Z (20261121T224000Z - 5 min.)",
    ): ("Signature expired", "clock is wrong"),
    (
        "DescribeDBProxies",
        "SignatureDoesNotMatch",
        "Signature not yet current: 20261121T230000Z is still later than 20261121T224500Z (20261121T224000Z + 5 min.)",
    ): ("Signature not yet current", "clock is wrong"),
    (
        "ReceiveMessage",
        "InvalidSignatureException",
        "The request signature we calculated does not match the signature you provided.",
    ): ("does not accept the credentials", "session token"),
    ("DescribeStacks", "InvalidClientTokenId", "The security token included in the request is invalid."): (
        "AWS does not accept the credentials (DescribeStacks: The security token included in the request is invalid).",
        "AWS_PROFILE",
    ),
    ("DescribeSubnets", "AuthFailure", "AWS was not able to validate the provided access credentials"): (
        "does not accept the credentials",
        "AWS_PROFILE",
    ),
    ("SendMessageBatch", "RequestThrottled", ""): ("AWS throttles SendMessageBatch", "--rate"),
    ("ReceiveMessage", "OverLimit", ""): ("AWS throttles ReceiveMessage", "(OverLimit)"),
    ("GetMetricData", "Throttling", "Rate exceeded"): ("AWS throttles GetMetricData", "Wait"),
    ("SendMessage", "KMS.ThrottlingException", ""): ("AWS throttles SendMessage", "Wait"),
    (
        "GetQueueAttributes",
        "AWS.SimpleQueueService.NonExistentQueue",
        "The specified queue does not exist or you do not have access to it.",
    ): ("the queue does not exist (any more)", "`spillway dlq list`"),
    ("ReceiveMessage", "com.amazonaws.sqs#QueueDoesNotExist", ""): ("the queue does not exist", "dlq list"),
    ("ReceiveMessage", "QueueDoesNotExist", ""): ("these credentials may not see it", "dlq list"),
    ("StartMessageMoveTask", "AWS.SimpleQueueService.UnsupportedOperation", "Only from a dead-letter queue."): (
        "StartMessageMoveTask is not supported here: Only from a dead-letter queue.",
        "",
    ),
    ("StartMessageMoveTask", "InvalidAction", "Unknown action"): ("not supported here: Unknown action.", ""),
    ("DescribeDBProxies", "DBProxyNotFoundFault", "DB proxy prod not found."): (
        "AWS refused DescribeDBProxies: DB proxy prod not found (DBProxyNotFoundFault).",
        "",
    ),
    ("DescribeDBProxies", "", ""): ("AWS refused DescribeDBProxies: no reason given (no code).", ""),
}


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case[0]} {case[1]}")
def test_a_refusal_says_what_to_do(case: tuple[str, str, str]) -> None:
    said, hint = REFUSALS[case]
    refused = explained(error(*case))
    assert said in refused.message
    assert hint in str(refused)
    assert ".." not in refused.message
    assert not is_denied(error(*case))


def test_what_botocore_retries_as_throttling_is_throttling() -> None:
    dynamodb = {"ProvisionedThroughputExceededException", "TransactionInProgressException"}
    assert set(ThrottledRetryableChecker._THROTTLED_ERROR_CODES) - dynamodb <= THROTTLED
    assert is_throttled(error("SendMessage", "AWS.SimpleQueueService.RequestThrottled"))
    assert not is_throttled(error("SendMessage", "AccessDenied"))
    assert not is_throttled(ValueError())
    assert not is_denied(ValueError())


def test_a_code_is_read_without_what_stands_before_it() -> None:
    for code in ("AWS.SimpleQueueService.NonExistentQueue", "com.amazonaws.sqs#NonExistentQueue", "NonExistentQueue"):
        assert code_of(error("ReceiveMessage", code)) == "NonExistentQueue"


SQS = "https://sqs.eu-west-1.amazonaws.com/"
#: An error from before AWS answers -> what is said.
ON_THE_WAY: dict[str, tuple[Exception, str, str]] = {
    "no credentials": (of.NoCredentialsError(), "There are no AWS credentials", "--profile"),
    "half of them": (
        of.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
        "missing: AWS_SECRET_ACCESS_KEY",
        "~/.aws/config",
    ),
    "a broken credential process": (
        of.CredentialRetrievalError(provider="custom-process", error_msg="exit 1"),
        "cannot be used",
        "~/.aws/config",
    ),
    "SSO expired": (of.UnauthorizedSSOTokenError(), "The AWS login has expired", "aws sso login"),
    "SSO never": (
        of.SSOTokenLoadError(error_msg="Token for prod does not exist"),
        "or there was none",
        "aws sso login",
    ),
    "SSO session": (of.TokenRetrievalError(provider="sso", error_msg="Token has expired"), "expired", "aws sso login"),
    "aws login": (of.LoginRefreshRequired(), "The AWS login has expired", "`aws login`"),
    "unknown profile": (
        of.ProfileNotFound(profile="prdo"),
        "The config profile (prdo) could not be found.",
        "--profile",
    ),
    "no region": (of.NoRegionError(), "You must specify a region.", "--region"),
    "no answer": (
        of.EndpointConnectionError(endpoint_url=SQS),
        "sqs.eu-west-1.amazonaws.com does not answer.",
        "--region",
    ),
    "too slow": (of.ReadTimeoutError(endpoint_url=SQS), "sqs.eu-west-1.amazonaws.com does not answer.", "network"),
    "cannot connect": (of.ConnectTimeoutError(endpoint_url=SQS), "does not answer.", "network"),
    "cut off": (
        of.ConnectionClosedError(endpoint_url=SQS),
        "sqs.eu-west-1.amazonaws.com broke the connection.",
        "again",
    ),
    "a misspelt region": (
        of.EndpointConnectionError(endpoint_url="https://cloudformation.eu-west-11.amazonaws.com/"),
        "'eu-west-11' is no AWS region known here",
        "Did you mean 'eu-west-1'?",
    ),
    "a region of China": (
        of.EndpointConnectionError(endpoint_url="https://sqs.cn-north-1.amazonaws.com.cn/"),
        "sqs.cn-north-1.amazonaws.com.cn does not answer.",
        "--region",
    ),
    "somebody reads along": (
        of.SSLError(endpoint_url=SQS, error="self-signed certificate"),
        "The certificate of sqs.eu-west-1.amazonaws.com is not accepted: self-signed certificate.",
        "AWS_CA_BUNDLE",
    ),
    "an HTTP proxy": (of.ProxyConnectionError(proxy_url="http://proxy:3128"), "http://proxy:3128", "HTTPS_PROXY"),
    "unforeseen": (of.HTTPClientError(error=ValueError("odd")), "odd.", "try again"),
    "our mistake": (of.ParamValidationError(report="Unknown parameter"), "Unknown parameter.", "--debug"),
    "the rest": (of.DataNotFoundError(data_path="sqs"), "AWS could not be asked: ", ""),
}


@pytest.mark.parametrize("case", ON_THE_WAY)
def test_what_happens_before_aws_answers(case: str) -> None:
    raised, said, hint = ON_THE_WAY[case]
    found = explained(raised)
    assert said in found.message
    assert hint in found.hint
    assert "\n" not in found.message


@pytest.mark.parametrize("port", ["closed", "silent"])
def test_the_local_stack_does_not_answer(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen() if port == "silent" else None
        url = f"http://127.0.0.1:{listener.getsockname()[1] if port == 'silent' else ports.free_port()}"
        config = Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=0.05, proxies={})
        client: Any = boto3.client(
            "sqs",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=config,
        )
        with pytest.raises(of.BotoCoreError) as raised:
            client.receive_message(QueueUrl=f"{url}/q")
    found = explained(raised.value)
    assert found.message == f"The local stack does not answer at {url}."
    assert "spillway up" in found.hint


def test_what_keeps_a_client_from_being_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SpillwayError, match=r"The config profile \(prdo\) could not be found") as raised:
        aws.client("sqs", None, "eu-west-1", "prdo")
    assert "--profile" in raised.value.hint
    with pytest.raises(SpillwayError, match="No AWS region is configured") as raised:
        aws.client("sqs")
    assert "--region" in raised.value.hint
    with pytest.raises(SpillwayError, match="region") as raised:
        aws.client("sqs", None, "eu west")
    assert "--region" in raised.value.hint


def test_a_command_that_asks_nothing_does_not_load_boto3() -> None:
    code = (
        "import sys, spillway.cli; spillway.cli.program();"
        " sys.exit(bool({'boto3', 'botocore.exceptions'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
