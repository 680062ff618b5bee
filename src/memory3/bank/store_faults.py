"""What an object store answers, and Lance says of it, turned into memory3's errors: each with what to do.

Stores name a fault by a code in the body of the answer (Amazon S3, "Error responses"), which the libraries pass on as text.
"""

from __future__ import annotations

from memory3.errors import BankBusy, BankError, BankNotFound, BankRefused, BankUnreachable

__all__ = ["store_fault"]

#: Parts of a message, the error they mean, and what the message says. The first that fits counts.
_FAULTS: tuple[tuple[tuple[str, ...], type[BankError], str], ...] = (
    (
        ("nosuchbucket", "containernotfound", "bucket does not exist", "container does not exist"),
        BankNotFound,
        "there is no such bucket. Make it, or see whether its name, the region and the endpoint are the right ones",
    ),
    (
        ("requesttimetooskewed", "requestexpired"),
        BankRefused,
        "this machine's clock is wrong: the store refuses what is signed more than 15 minutes off. Set the clock (NTP)",
    ),
    (
        ("expiredtoken", "tokenrefreshrequired", "tokenexpired"),
        BankRefused,
        "the credentials have expired. Get new ones, and run the same again to go on",
    ),
    (
        (
            "missingaccesskeyid",
            "missingsecretaccesskey",
            "failed to get aws credentials",
            "credentialsnotloaded",
            "no credentials",
            "169.254.169.254",
            "latest/api/token",
            "latest/meta-data",
            "metadata.google.internal",
        ),
        BankRefused,
        "no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (gs://: GOOGLE_APPLICATION_CREDENTIALS; "
        "az://: AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY); for a public bucket AWS_SKIP_SIGNATURE=true",
    ),
    (
        (
            "permanentredirect",
            "authorizationheadermalformed",
            "illegallocationconstraint",
            "received redirect without location",
        ),
        BankRefused,
        "the bucket lies in another region or at another endpoint. Set AWS_REGION, or AWS_ENDPOINT_URL",
    ),
    (
        (
            "accessdenied",
            "invalidaccesskeyid",
            "signaturedoesnotmatch",
            "authenticationfailed",
            "authorizationpermissionmismatch",
            "lacked the necessary privileges",
            "lacked valid authentication",
            "permissiondenied",
            "unauthenticated",
            "403 forbidden",
            "401 unauthorized",
            "status: 403",
            "status: 401",
        ),
        BankRefused,
        "the store refuses these credentials. See whether they are the right ones, and may list, read and write the bucket",
    ),
    (
        ("incompatible transaction", "commit conflict", "concurrent transaction", "concurrent writers"),
        BankBusy,
        "another writer has taken the bank over, since this one gave no sign of life for too long. What was committed before "
        "is intact: run the same again to go on",
    ),
    (
        ("slowdown", "toomanyrequests", "requestlimitexceeded", "serverbusy", "status: 503", "status: 429", "503 service"),
        BankUnreachable,
        "the store throttles requests, or is overloaded. Wait, and run the same again to go on; fewer processes at once help",
    ),
    (
        ("kind: timeout", "timed out", "timedout", "deadline has elapsed", "requesttimeout"),
        BankUnreachable,
        "the store does not answer in time. See the network and the endpoint (AWS_ENDPOINT_URL), then run the same again",
    ),
    (
        (
            "builder error",
            "incompletemessage",
            "connection",
            "error sending request",
            "dns error",
            "kind: connect",
            "kind: request",
            "error decoding response body",
            "end of file before message",
        ),
        BankUnreachable,
        "the store cannot be reached. See the network and the endpoint (AWS_ENDPOINT_URL; AWS_ALLOW_HTTP=true where it is one "
        "of http://), then run the same again",
    ),
    (
        ("status: 500", "status: 502", "status: 504", "500 internal", "502 bad", "504 gateway", "internalerror"),
        BankUnreachable,
        "the store fails by itself. Wait, and run the same again to go on",
    ),
)


def store_fault(place: object, error: BaseException) -> BankError | None:
    """The error that an object store's answer means; None where it says nothing of the store, as for damaged files.

    Args:
        place: URL of the bank.
        error: what was raised; its causes are looked at, too.
    """
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{cause!r} {cause}".lower())
        cause = cause.__cause__
    text = " ".join(texts)
    for parts, kind, says in _FAULTS:
        if any(part in text for part in parts):
            return kind(f"{place}: {says}")
    return None
