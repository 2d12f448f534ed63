"""The OpenAPI document is true: generated requests get only documented answers, and none is a server error."""

import httpx
import pytest

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'sft-go[test]'")


def test_the_document_names_every_route_and_its_errors(server):
    with server.client() as client:
        document = client.get("/openapi.json").json()
        docs = client.get("/docs").text
    assert set(document["paths"]) == {"/v1/score", "/v1/groupers", "/health", "/ready", "/info", "/metrics"}
    assert set(document["paths"]["/v1/score"]["post"]["responses"]) == {
        "200", "401", "408", "413", "415", "422", "429", "431", "500", "503",
    }  # fmt: skip
    assert "http://" not in docs.replace("http://localhost", "")
    assert "https://" not in docs, "the docs load nothing from elsewhere"
    assert "POST /v1/score" in docs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_generated_requests(server):
    """Valid and invalid requests made from the document (schemathesis)."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    called = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            def call(case):
                response = case.call(base_url=server.url)
                called.setdefault(case.operation.label, []).append(response.status_code)
                case.validate_response(response, checks=checks)

            try:
                call()
            except Unsatisfiable:
                assert operation.method == "get", "only what has no parameters cannot be called wrongly"
    statuses = called["POST /v1/score"]
    assert len(statuses) >= 200
    assert {200, 422} <= set(statuses), "valid and invalid requests both came up"
    assert set(called) == {f"{'POST' if path == '/v1/score' else 'GET'} {path}" for path in schema.raw_schema["paths"]}
    assert httpx.get(f"{server.url}/ready").status_code == 200
