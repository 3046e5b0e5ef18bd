"""The paths of the API, and errors of every kind in one form."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.common.presets import presets
from llava.common.shown import shown
from llava.serve.api.chat_service import ChatService
from llava.serve.api.failures import FAILED, NOT_FOUND, ApiError

COMPLETIONS = "/v1/chat/completions"
_PATHS = (COMPLETIONS, "/v1/models", "/health", "/metrics")


def make_app(service: ChatService) -> FastAPI:
    """The application of a service; its lifespan starts the model's thread and ends it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Measured, service=service)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _told_by_framework)
    app.add_exception_handler(Exception, _unexpected)
    known = _model(service, int(time.time()))

    @app.post(COMPLETIONS)
    async def completions(request: Request) -> Response:
        return await service.complete(request)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        service.keys.check(request.headers.get("authorization"))
        return {"object": "list", "data": [known]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        service.keys.check(request.headers.get("authorization"))
        if name != service.defaults.model:
            message = f"There is no model {shown(name)}; this server has {service.defaults.model!r}."
            raise ApiError(404, message, NOT_FOUND, "model", "model_not_found")
        return known

    @app.get("/health")
    async def health() -> JSONResponse:
        reason = service.fault or ("The server is ending." if service.is_ending else None)
        return JSONResponse({"status": "ok" if reason is None else reason}, 200 if reason is None else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.measures.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def _model(service: ChatService, created: int) -> dict[str, Any]:
    return {
        "id": service.defaults.model,
        "object": "model",
        "created": created,
        "owned_by": "llava",
        "max_model_len": service.engine.inputs.limit,
        "compression": service.engine.model.compression.to_dict(),
        "compression_presets": _fitting(service.engine.model),
    }


def _fitting(model: Any) -> list[str]:
    """Presets that a model takes."""
    fitting = []
    for name in presets():
        try:
            model.checked(name)
        except ValueError:
            continue
        fitting.append(name)
    return fitting


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers())


async def _told_by_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = shown(request.url.path)
    said = {
        404: f"There is no path {path}; there are {', '.join(_PATHS)}.",
        405: f"{path} does not take {request.method}.",
    }
    code = {404: "no_such_path", 405: "method_not_allowed"}.get(error.status_code)
    told = ApiError(error.status_code, said.get(error.status_code, f"{error.detail}."), code=code)
    return JSONResponse(told.body(), told.status, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    message = f"The server failed on this request ({type(error).__name__}); its log says more."
    return JSONResponse(ApiError(500, message, FAILED).body(), 500)


class _Measured:
    """Counts completions by their status, and the time that they take."""

    def __init__(self, app: ASGIApp, service: ChatService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != COMPLETIONS:
            await self._app(scope, receive, send)
            return
        status, began = 0, time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            status = 500
            raise
        finally:
            self._service.measures.request(status, time.monotonic() - began)
