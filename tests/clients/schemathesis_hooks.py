"""Changes generated requests so that more of them are answered.

Raises valid time limits to a minute, so that none of them passes: that ends a request with status 504 and a
stream without its last chunk. Invalid limits are left for the server to refuse. Asks for a stream in every
other body that does not say whether it wants one. Puts the ids of a file and of a batch that exist, where the
environment names them, in place of every other valid id.
"""

import json
import os
import zlib

import schemathesis

HEADER = "x-request-deadline-ms"
STREAMS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
IDS = {"/v1/files/{id}": "OCTANT_FILE", "/v1/batches/{id}": "OCTANT_BATCH"}


@schemathesis.hook
def before_call(context, case, kwargs):
    limit = str((case.headers or {}).get(HEADER, ""))
    if limit.isascii() and limit.isdigit() and 1 <= int(limit) < 60_000:
        case.headers[HEADER] = "60000"
    body = case.body if isinstance(case.body, dict) else {}
    timeout = body.get("timeout")
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and 0 < timeout < 60:
        body["timeout"] = 60
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    for path, name in IDS.items():
        if case.path.startswith(path) and name in os.environ and case.method != "DELETE":
            put_id(case.path_parameters, "id", os.environ[name])
    if case.path == "/v1/batches" and "OCTANT_FILE" in os.environ:
        put_id(body, "input_file_id", os.environ["OCTANT_FILE"])
    if case.path in STREAMS and "stream" not in body and is_every_other(json.dumps(body)):
        body["stream"] = True


def put_id(fields, field, known):
    value = (fields or {}).get(field)
    if isinstance(value, str) and is_every_other(value):
        fields[field] = known


def is_every_other(text):
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % 2 == 1
