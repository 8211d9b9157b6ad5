"""Raises the valid time limits of generated requests to a minute, so that none of them passes: that ends a
request with status 504 and a stream without its last chunk. Invalid limits are left for the server to refuse.
"""

import schemathesis

HEADER = "x-request-deadline-ms"


@schemathesis.hook
def before_call(context, case, kwargs):
    limit = str((case.headers or {}).get(HEADER, ""))
    if limit.isascii() and limit.isdigit() and 1 <= int(limit) < 60_000:
        case.headers[HEADER] = "60000"
    timeout = case.body.get("timeout") if isinstance(case.body, dict) else None
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and 0 < timeout < 60:
        case.body["timeout"] = 60
