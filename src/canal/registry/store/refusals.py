"""What a server refused to an account, in words: errors of libraries name a code, not what to do."""

import os

from canal.config.sections import Registry

UNKNOWN_ACCOUNT = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
"""MLflow's codes for an account that it does not know, or none."""

SET_ACCOUNT = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def server_refusal(error: BaseException, names: Registry) -> str | None:
    """Return what MLflow's server refused to an account and what to do, in one line; None for others."""
    code = getattr(error, "error_code", "")
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if code == "PERMISSION_DENIED" or status == 403:
        account = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        return (
            f"the account {account!r} may not change this: ask whoever looks after the server for EDIT on "
            f"the experiment {names.experiment!r} and on the models {names.backbone!r} and {names.model!r}"
        )
    if code in UNKNOWN_ACCOUNT or status == 401:
        return f"it does not know the account, or the password is wrong: {SET_ACCOUNT}"
    if status >= 500 and "mlflow-artifacts" in str(error):
        return (
            f"it could not use the place where it keeps files (status {status}): its log says why; its own "
            "account of the object store may be wrong, expired or read-only"
        )
    return None
