"""The gateway's OpenAPI 3.1 document, made from the structs that requests are parsed into."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.live.openai import (
    ChatCompletion,
    ChatEvent,
    ChatRequest,
    CompletionRequest,
    ErrorBody,
    Model,
    ModelList,
    TextCompletion,
)

_KINDS = (ChatRequest, CompletionRequest, ChatCompletion, ChatEvent, TextCompletion, ModelList, Model, ErrorBody)
_REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    "400": "the request is wrong; the error names the field",
    "401": "the key is wrong",
    "404": "no such model",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "the body is not sent as application/json",
    "429": "too much to do; see Retry-After",
    "500": "a failure of ours",
    "502": "a worker was lost",
    "503": "nobody is there to answer; see Retry-After",
    "504": "the answer did not come in time",
}


def document(models: Sequence[str], with_keys: bool) -> dict[str, Any]:
    """The whole document. models: ids that can be asked for. with_keys: whether a key is needed."""
    references, components = msgspec.json.schema_components(_KINDS, ref_template=_REFERENCE)
    schema = dict(zip((kind.__name__ for kind in _KINDS), references, strict=True))
    for kind in (ChatRequest, CompletionRequest):
        components[kind.__name__]["properties"]["model"]["enum"] = list(models)
    session = {
        "name": "X-Session-Id",
        "in": "header",
        "description": "as session_id in the body, which counts where both are given",
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    }
    which = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "enum": list(models)}}
    paths = {
        "/v1/chat/completions": {
            "post": _generation("chat", schema["ChatRequest"], schema["ChatCompletion"], schema["ChatEvent"], session)
        },
        "/v1/completions": {
            "post": _generation(
                "completion", schema["CompletionRequest"], schema["TextCompletion"], schema["TextCompletion"], session
            )
        },
        "/v1/models": {"get": _reading("models", "the models that are served", schema["ModelList"], "401")},
        "/v1/models/{id}": {
            "get": {**_reading("model", "a model that is served", schema["Model"], "401", "404"), "parameters": [which]}
        },
        "/healthz": {"get": _reading("alive", "the gateway runs", {"type": "object"}, "503")},
        "/readyz": {"get": _reading("ready", "the cluster makes tokens", {"type": "object"}, "503")},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "MLX inference cluster", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": components,
            **({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if with_keys else {}),
        },
        **({"security": [{"key": []}]} if with_keys else {}),
    }


def _generation(
    name: str, request: dict[str, Any], whole: dict[str, Any], event: dict[str, Any], session: dict[str, Any]
) -> dict[str, Any]:
    content = {"application/json": {"schema": whole}, "text/event-stream": {"schema": event}}
    return {
        "operationId": name,
        "parameters": [session],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {"description": "the answer; with `stream` as server-sent events", "content": content},
            **{status: _error(meaning) for status, meaning in _ERRORS.items()},
        },
    }


def _reading(name: str, meaning: str, schema: dict[str, Any], *errors: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "responses": {
            "200": {"description": meaning, "content": {"application/json": {"schema": schema}}},
            **{status: _error(_ERRORS[status]) for status in errors},
        },
    }


def _error(meaning: str) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(name="ErrorBody")}
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}
