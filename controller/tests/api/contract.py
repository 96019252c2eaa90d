"""Holds a running API against its OpenAPI document.

    contract.py APPLIER READER

Both are base URLs of one agent: of whoever uses the first it is known that they may change, of the second that they may only read. Each operation with
input is asked with what the document permits, with what it does not, and with what fits the agent's state, which chance would not find. Each answer
must be one that the document tells of, with the body that it tells of; none may be a 500, and a 429 or 503 must say when to ask again. Prints a line for
each operation and ends with 1 when something is wrong.
"""

import collections
import itertools
import json
import sys

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

# Requests of each kind: with what the document permits, and with what it does not.
EXAMPLES = 30
# Requests that fit the agent's state, for each operation.
GOOD = 25
# Of an operation with input so many must be accepted, and refused.
LEAST = 20
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
PROBLEM = "application/problem+json"
STREAM = "/v1/observations/stream"

applier, reader = sys.argv[1:]
schema = schemathesis.openapi.from_url(f"{applier}/v1/openapi.json")
operations = {f"{o.method.upper()} {o.path}": o for o in (found.ok() for found in schema.get_all_operations())}
counts = collections.defaultdict(collections.Counter)
wrong = []


def policy(number):
    """A document that compiles on the agent of the test: `cart` is in none of its files."""
    port = 1 + number % 65535
    return (
        "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\n"
        f"services:\n  cart: {{ calls: ['db:{port}'] }}\n"
    )


def counted(name, status, headers, text):
    """Counts an answer, and looks at what holds for all of them."""
    kind = "accepted" if status < 300 else "refused"
    counts[name][kind] += 1
    counts[name][status] += 1
    if status >= 300 and headers.get("content-type") != PROBLEM:
        wrong.append(f"{name}: {status} as {headers.get('content-type')}")
    if status == 500:
        wrong.append(f"{name}: {text}")
    if status in (429, 503) and "retry-after" not in headers:
        wrong.append(f"{name}: {status} without Retry-After")
    return status


def called(name, case, base=applier):
    """Sends a case; returns its answer."""
    response = case.call(base_url=base)
    headers = {header.lower(): values[0] for header, values in response.headers.items()}
    counted(name, response.status_code, headers, response.text)
    try:
        case.validate_response(response, checks=CHECKS)
    except (Failure, FailureGroup) as failure:
        causes = getattr(failure, "exceptions", [failure])
        for cause in causes:
            wrong.append(f"{name}: {cause}\n    {case.as_curl_command()}")
    return response


def send(name, **parts):
    """Sends a request that fits the agent's state, and must be accepted."""
    case = operations[name].Case(**parts)
    response = called(name, case)
    if response.status_code >= 300:
        wrong.append(f"{name}: {response.status_code} {response.text} for {parts}")
    return response.json()


JSON = {"media_type": "application/json"}
numbers = itertools.count(1)


def fresh():
    """The text of a document that is not in force."""
    return policy(next(numbers))


def etag(name):
    """The ETag of a document, None where there is none."""
    answer = requests.get(f"{applier}/v1/policies/{name}", timeout=30)
    return answer.json()["etag"] if answer.ok else None


def clear():
    """Removes every document, so that the next one contradicts nobody, and confirms what waits for it."""
    pending = requests.get(f"{applier}/v1/status", timeout=30).json()["pending"]
    if pending:
        requests.post(f"{applier}/v1/revisions/{pending['revision']}/confirm", timeout=30).raise_for_status()
    for document in requests.get(f"{applier}/v1/policies", timeout=30).json():
        if document["source"] == "api":
            url = f"{applier}/v1/policies/{document['name'].removeprefix('api/')}"
            requests.delete(url, headers={"If-Match": document["etag"]}, timeout=30).raise_for_status()


def plan(text):
    return send("POST /v1/plan", body={"documents": [{"name": "cart", "text": text}]}, **JSON)["id"]


def put():
    there = etag("cart")
    headers = {"If-Match": there} if there else {"If-None-Match": "*"}
    parts = {"path_parameters": {"name": "cart"}, "headers": headers}
    return send("PUT /v1/policies/{name}", body={"text": fresh(), "reason": "again"}, **parts, **JSON)


def delete():
    there = etag("cart") or (put(), etag("cart"))[1]
    send("DELETE /v1/policies/{name}", path_parameters={"name": "cart"}, headers={"If-Match": there})


def get():
    if not etag("cart"):
        put()
    send("GET /v1/policies/{name}", path_parameters={"name": "cart"})


def apply(**more):
    return send("POST /v1/apply", body={"plan": plan(fresh()), "reason": "again", **more}, **JSON)


def confirm():
    number = apply(confirm_within=3600)["number"]
    send("POST /v1/revisions/{number}/confirm", path_parameters={"number": number})


def rollback():
    number = put()["number"]
    put()
    send("POST /v1/rollback", body={"revision": number, "reason": "back"}, **JSON)


def history():
    listed = send("GET /v1/revisions", query={"limit": 1 + next(numbers) % 1000})
    send("GET /v1/revisions/{number}", path_parameters={"number": listed[0]["number"]})
    send("GET /v1/revisions", query={"before": listed[0]["number"]})


def explain():
    who = ["shop/web-1", "shop/db-1", "shop/cart-1", "203.0.113.9"]
    one, other = next(numbers) % 4, next(numbers) % 3
    port = ["5432", "53/udp", "echo/icmp", "proto/89"][next(numbers) % 4]
    body = {"from": who[one], "to": who[other if other != one else (other + 1) % 3], "port": port}
    send("POST /v1/explain", body=body, **JSON)


def generated(name, mode):
    """Asks an operation with what chance makes of its schema."""
    operation = operations[name]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case):
        called(name, case)

    try:
        run()
    except Unsatisfiable:
        # Every string is a name, for one: the document forbids nothing.
        print(f"{name}: nothing is {mode.value}")


def has_input(operation):
    return any(True for _ in operation.iter_parameters()) or bool(operation.body)


with_input = [name for name, operation in operations.items() if has_input(operation)]
for name in with_input:
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        generated(name, mode)
clear()
for _ in range(GOOD):
    for one in (put, get, delete, apply, confirm, rollback, history, explain):
        one()
        if one in (rollback, confirm, apply):
            clear()

for name, operation in operations.items():
    method, path = name.split()
    if name not in with_input and path != STREAM:
        for base in (applier, reader):
            status = called(name, operation.Case(), base).status_code
            if status >= 300:
                wrong.append(f"{name}: {status} to whoever {'applies' if base == applier else 'reads'}")
    if "403" in operation.definition.raw["responses"]:
        # Who may not change is told so, whatever they send.
        answer = requests.request(method, reader + path.replace("{number}", "1").replace("{name}", "cart"), timeout=30)
        if counted(name, answer.status_code, answer.headers, answer.text) != 403:
            wrong.append(f"{name}: {answer.status_code} to whoever may only read")

for base in (applier, reader):
    # It never ends: one line is enough.
    with requests.get(base + STREAM, stream=True, timeout=30) as answer:
        status = counted(f"GET {STREAM}", answer.status_code, answer.headers, "")
        lines = answer.headers.get("content-type") == "application/x-ndjson"
        if status != 200 or not lines or "verdict" not in json.loads(next(answer.iter_lines())):
            wrong.append(f"GET {STREAM}: {status} {answer.headers}")

for name in operations:
    of = counts[name]
    statuses = ", ".join(f"{of[status]} x {status}" for status in sorted(key for key in of if isinstance(key, int)))
    print(f"{name:45} {of['accepted']:4} accepted {of['refused']:4} refused   {statuses}")
    if name in with_input and min(of["accepted"], of["refused"]) < LEAST:
        wrong.append(f"{name}: {of['accepted']} accepted and {of['refused']} refused, {LEAST} of each are wanted")
    if not of["accepted"]:
        wrong.append(f"{name}: nothing was accepted")

for text, times in collections.Counter(wrong).items():
    print(f"WRONG ({times} times) {text}", file=sys.stderr)
sys.exit(bool(wrong))
