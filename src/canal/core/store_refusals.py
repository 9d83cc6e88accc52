"""What an object store refused, in words: errors of libraries name a code, not what to do.

Files of versions lie in an object store (S3, or what speaks like it) where the registry's server keeps them
there, or where this machine reaches it itself (``MLFLOW_DEFAULT_ARTIFACT_ROOT=s3://...``); cells and labels
do where a command is given their addresses.
"""

import re
from collections.abc import Iterator

_LIBRARIES = ("botocore", "boto3", "s3transfer")
_CODE = re.compile(r"\((\w+)\) when calling the (\w+)")

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_WRONG = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId")
_REFUSED = ("AccessDenied", "AllAccessDisabled", "AccountProblem")
_READS = ("GetObject", "ListObjects", "ListObjectsV2", "HeadObject", "HeadBucket", "ListBuckets")
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")
_NO_ANSWER = (
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ConnectionClosedError",
    "HTTPClientError",
    "FSTimeoutError",
)
_NO_PROFILE = ("ProfileNotFound", "ConfigNotFound", "ConfigParseError")

_WHERE = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names"


def object_store_refusal(
    error: BaseException,
    endpoint: str = "MLFLOW_S3_ENDPOINT_URL (and AWS_ENDPOINT_URL)",
    bucket: str = "MLFLOW_DEFAULT_ARTIFACT_ROOT",
) -> str | None:
    """Return what an object store refused and what to do, in one line; None for any other error.

    Nothing that a library said is repeated but codes: it may hold parts of a signature.

    Parameters
    ----------
    error
        Of a library, or raised from one of these.
    endpoint, bucket
        Where a person has set the store's address and the bucket.
    """
    causes = list(causes_of(error))
    if not any(_of_library(one) or _CODE.search(str(one)) for one in causes):
        return None
    names = {type(one).__name__ for one in causes}
    if names.intersection(_NO_KEYS):
        return f"the object store wants an account, and none is set: set {_WHERE}"
    if names.intersection(_NO_ANSWER):
        return f"the object store does not answer: is it running, and is {endpoint} right?"
    if names.intersection(_NO_PROFILE):
        return "there is no such profile of the object store's accounts: is AWS_PROFILE right?"
    found = next((match for one in causes if (match := _CODE.search(str(one)))), None)
    code, call = found.groups() if found else ("", "")
    if code == "NoSuchBucket":
        return f"the object store has no such bucket: make it, or name another ({bucket})"
    return _meaning(code, call, " ".join(str(one) for one in causes))


def _meaning(code: str, call: str, text: str) -> str:
    if code in _EXPIRED or "has expired" in text:
        return (
            f"the object store says that the account's access has expired ({code}): log in again, or "
            f"renew {_WHERE} (and AWS_SESSION_TOKEN)"
        )
    if code in _WRONG:
        return f"the object store does not know the account, or its secret is wrong ({code}): check {_WHERE}"
    if code in (*_REFUSED, "403", "Forbidden"):
        what = "read" if call in _READS else "write"
        doubt = f", or the secret is wrong: check {_WHERE}" if code in ("403", "Forbidden") else ""
        return (
            f"the account of the object store may not {what} there ({code} for {call}){doubt}; ask whoever "
            f"looks after the bucket for the right to {what}"
        )
    return f"the object store refused ({code or 'no code'} for {call or 'a request'})"


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from or within."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _of_library(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _LIBRARIES
