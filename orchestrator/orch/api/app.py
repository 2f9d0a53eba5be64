"""The HTTP API under /api/v1 (docs/api.md): checks what comes in, asks the controller, answers."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, cast

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from orch.api.gate import Gate, error_document
from orch.api.models import (
    DIGEST_PATTERN,
    CancelBody,
    CheckBody,
    PreemptBody,
    RecoverBody,
    ResumeBody,
    SecretsBody,
    SubmitBody,
    parse_resumption,
    parse_spec,
    parse_stored,
    parse_submission,
)
from orch.api.streams import download, log_answer, receive_code, wait_for
from orch.control.metrics import CONTENT_TYPE
from orch.control.service import ControlService, JobQuery, LogQuery
from orch.control.views import parse_time_us
from orch.model import errors
from orch.model.ids import valid_job_id
from orch.model.problems import ProblemsError, format_path
from orch.model.states import State

WAIT_S_MAX = 60.0
PAGE_MAX = 1000
TAIL_LINES_MAX = 100_000
OFFSET_MAX = 1 << 53

_STATUS: dict[type[errors.OrchError], int] = {
    errors.WrongUse: 400,
    errors.NoSuchJob: 404,
    errors.Blocked: 409,
    errors.NeverPlaceable: 422,
    errors.NoServer: 503,
    errors.TimedOut: 504,
}

_Digest = Annotated[str, InPath(pattern=DIGEST_PATTERN)]
_WaitS = Annotated[float, Query(ge=0, le=WAIT_S_MAX, allow_inf_nan=False)]
_Number = Annotated[int, Query(ge=0, le=OFFSET_MAX)]


def create_app(service: ControlService, token: str, hosts: Iterable[str] = ()) -> ASGIApp:
    """The API of `service`, for whoever has `token`. `hosts`: more names it is reached under."""
    return Gate(_routed(service), token, hosts)


def openapi_document() -> dict[str, Any]:
    """What the API takes and answers, as OpenAPI has it. For tests: it is served to nobody."""
    return _routed(cast("ControlService", None)).openapi()


def _routed(service: ControlService) -> FastAPI:
    app = FastAPI(title="orch", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(errors.OrchError, _known_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unknown_error)
    for routes in (_jobs_routes, _acting_routes, _stream_routes, _server_routes):
        app.include_router(routes(service), prefix="/api/v1")
    app.include_router(_metrics_route(service))  # where Prometheus looks for it
    return app


def _jobs_routes(service: ControlService) -> APIRouter:
    routes = APIRouter()

    @routes.post("/jobs", status_code=201)
    def submit(body: SubmitBody) -> JSONResponse:
        submission = parse_submission(body)
        if submission.code is not None and not service.has_code(submission.code.digest):
            raise errors.WrongUse(
                "the code of this job has not been uploaded; PUT it to /code/{digest} first"
            )
        return _jobs(service.submit(submission), status=201)

    @routes.get("/jobs")
    def jobs(
        state: Annotated[list[State], Query(max_length=len(State))] = [],  # noqa: B006 - FastAPI copies it
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 200,
        before: Annotated[str, Query(max_length=128)] = "",
    ) -> JSONResponse:
        states = [one.value for one in state]
        found = service.jobs(JobQuery(states=states, limit=limit, before=_place(before)))
        following = f"{found[-1]['submitted']}/{found[-1]['id']}" if len(found) == limit else None
        return JSONResponse({"version": 1, "jobs": found, "next": following})

    @routes.get("/jobs/{job}")
    def job(job: str) -> JSONResponse:
        return _jobs(service.job(_known(job)))

    @routes.post("/check")
    def check(body: CheckBody) -> JSONResponse:
        return JSONResponse({"version": 1, **asdict(service.check(parse_spec(body.spec)))})

    @routes.get("/jobs/{job}/wait")
    async def wait(job: str, wait_s: _WaitS = 0) -> JSONResponse:
        _known(job)

        def look() -> tuple[bool, bool]:
            ended = service.ended(job)
            return ended, ended

        ended = await wait_for(service, job, look, wait_s=wait_s)
        return _jobs(service.job(job), ended=ended)

    return routes


def _acting_routes(service: ControlService) -> APIRouter:
    routes = APIRouter()

    @routes.post("/jobs/{job}/cancel")
    def cancel(job: str, body: CancelBody) -> JSONResponse:
        return _jobs(service.cancel(_known(job), now=body.now))

    @routes.post("/jobs/{job}/preempt")
    def preempt(job: str, body: PreemptBody) -> JSONResponse:
        return _jobs(service.preempt(_known(job), grace_s=body.grace_s, attempt=body.attempt))

    @routes.put("/jobs/{job}/secrets")
    def set_secrets(job: str, body: SecretsBody) -> JSONResponse:
        return _jobs(service.set_secrets(_known(job), body.secrets))

    @routes.post("/jobs/{job}/recover")
    def recover(job: str, body: RecoverBody) -> JSONResponse:
        spec = parse_spec(body.spec)
        outcome, found = service.recover(parse_stored(_known(job), body), spec, body.url)
        return _jobs(found, outcome=outcome)

    @routes.post("/jobs/{job}/resume")
    def resume(job: str, body: ResumeBody) -> JSONResponse:
        asked = parse_resumption(body)
        if asked.code is not None and not service.has_code(asked.code.digest):
            raise errors.WrongUse("the new code has not been uploaded; PUT it to /code/{digest} first")
        return _jobs(service.resume(_known(job), asked))

    return routes


def _stream_routes(service: ControlService) -> APIRouter:
    routes = APIRouter()

    @routes.get("/jobs/{job}/events")
    async def events(
        job: str,
        after: _Number = 0,
        wait_s: _WaitS = 0,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = PAGE_MAX,
    ) -> JSONResponse:
        _known(job)

        def look() -> tuple[tuple[list[dict[str, Any]], bool], bool]:
            ended = service.ended(job)  # before the events: the last page must be whole
            found = service.events(job, after, limit)
            return (found, ended and len(found) < limit), bool(found) or ended

        found, ended = await wait_for(service, job, look, wait_s=wait_s)
        following = found[-1]["seq"] if found else after
        return JSONResponse({"version": 1, "events": found, "next_after": following, "ended": ended})

    @routes.get("/jobs/{job}/logs")
    async def logs(
        job: str,
        *,
        rank: _Number = 0,
        attempt: Annotated[int | None, Query(ge=1, le=999_999_999)] = None,
        offset: _Number = 0,
        tail: Annotated[int | None, Query(ge=0, le=TAIL_LINES_MAX)] = None,
        wait_s: _WaitS = 0,
        timestamps: bool = False,
    ) -> Response:
        query = LogQuery(rank=rank, attempt=attempt, offset=offset, tail_lines=tail, times=timestamps)
        return await log_answer(service, _known(job), query, wait_s=wait_s, timestamps=timestamps)

    @routes.get("/jobs/{job}/outputs")
    def outputs(job: str) -> Response:
        return download(service.outputs(_known(job)))

    @routes.head("/code/{digest}")
    def has_code(digest: _Digest) -> Response:
        return Response(status_code=200 if service.has_code(digest) else 404)

    @routes.put("/code/{digest}", status_code=204)
    async def upload(digest: _Digest, request: Request) -> Response:
        await receive_code(service, digest, request)
        return Response(status_code=204)

    return routes


def _server_routes(service: ControlService) -> APIRouter:
    routes = APIRouter()

    @routes.get("/server")
    def status() -> JSONResponse:
        return JSONResponse({"version": 1, "server": service.server_status()})

    @routes.post("/server/restart")
    def restart() -> JSONResponse:
        service.hand_over()
        return JSONResponse({"version": 1, "server": {}})

    @routes.post("/server/stop")
    def stop() -> JSONResponse:
        return JSONResponse({"version": 1, "server": service.stop()})

    return routes


def _metrics_route(service: ControlService) -> APIRouter:
    routes = APIRouter()

    @routes.get("/metrics")
    def metrics() -> Response:
        return Response(service.metrics(), media_type=CONTENT_TYPE)

    return routes


def _jobs(document: dict[str, Any], *, status: int = 200, **more: Any) -> JSONResponse:
    return JSONResponse({"version": 1, "jobs": [document], **more}, status_code=status)


def _known(job: str) -> str:
    """A job's id goes into paths and queries: what cannot be one goes no further."""
    if not valid_job_id(job):
        raise errors.NoSuchJob(
            f"{job[:80]!r} cannot be a job's id; `orch status` lists the jobs of this server"
        )
    return job


def _place(before: str) -> tuple[int, str] | None:
    if not before:
        return None
    submitted, _, job = before.partition("/")
    try:
        return parse_time_us(submitted), _known(job)
    except (ValueError, OverflowError, errors.NoSuchJob):
        raise errors.WrongUse("`before` is no `next` of an earlier page") from None


def _error(
    status: int, code: str, message: str, problems: list[dict[str, Any]] | None = None
) -> JSONResponse:
    return JSONResponse(error_document(code, message, problems), status_code=status)


def _known_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.OrchError)
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    problems = [problem.to_dict() for problem in error.problems] if isinstance(error, ProblemsError) else None
    return _error(status, error.code, error.message, problems)


def _bad_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Only place and rule: the value may be a secret's.
    problems = [{"path": format_path(tuple(one["loc"][1:])), "message": one["msg"]} for one in error.errors()]
    text = "; ".join(
        f"{one['path']}: {one['message']}" if one["path"] else one["message"] for one in problems
    )
    return _error(400, errors.WrongUse.code, text[:2000], problems)


def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else errors.WrongUse.code
    answer = _error(error.status_code, code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _unknown_error(_request: Request, _error_met: Exception) -> Response:
    # Starlette raises it again behind this answer; the gate writes it to the log.
    return _error(500, "internal", "the server met an error of its own; its log says which")
