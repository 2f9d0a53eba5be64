"""Amazon EC2: interruption of a spot instance, two minutes ahead; and the recommendation that may come before it.

IMDSv2 only (a token first; the EC2 user guide, "Prepare for Spot Instance interruptions", "Use IMDSv2",
"Rebalance recommendations"). An on-demand instance never gets either, so it is not asked.
"""

from __future__ import annotations

from datetime import UTC, datetime

from orch_workers.preemption.metadata import Answer, Metadata, unexpected
from orch_workers.preemption.notice import Moment, Notice, SourceError, deadline_at

INTERVAL_S = 5.0
"""What Amazon recommends."""
TOKEN_TTL_S = 21_600
TOKEN_RENEW_S = 60.0
"""A token is renewed when it has no more than this left."""
_TOKEN = "/latest/api/token"  # noqa: S105 - a path
_LIFE_CYCLE = "/latest/meta-data/instance-life-cycle"
_ACTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
_NAME = "aws"


class Aws:
    name, interval_s, cloud = _NAME, INTERVAL_S, True

    def __init__(self, metadata: Metadata | None = None) -> None:
        self._metadata = metadata or Metadata()
        self._token, self._token_until_s = "", 0.0

    def probe(self) -> bool:
        now = Moment.now()
        try:
            self._renew(now)
        except _NoTokenError:
            return False
        answer = self._get(_LIFE_CYCLE, now)
        return answer.status != 200 or answer.text == "spot"

    def poll(self, now: Moment) -> Notice | None:
        """An interruption goes before a recommendation."""
        answer = self._get(_ACTION, now)
        if answer.status == 200:
            return _interruption(answer, now)
        if answer.status != 404:
            raise unexpected(answer)
        answer = self._get(_REBALANCE, now)
        if answer.status == 200:
            return _recommendation(answer)
        if answer.status != 404:
            raise unexpected(answer)
        return None

    def _get(self, path: str, now: Moment) -> Answer:
        if now.monotonic_s >= self._token_until_s:
            self._renew(now)
        answer = self._ask(path)
        if answer.status == 401:  # expired sooner than it was said to: the clocks differ, or it was revoked
            self._renew(now)
            answer = self._ask(path)
        return answer

    def _ask(self, path: str) -> Answer:
        return self._metadata.get(path, {"X-aws-ec2-metadata-token": self._token})

    def _renew(self, now: Moment) -> None:
        header = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S), "Content-Length": "0"}
        answer = self._metadata.ask("PUT", _TOKEN, header)
        token = answer.text
        if answer.status != 200 or not token or not token.isascii() or not token.isprintable():
            raise _NoTokenError(f"it gives no token (status {answer.status})")
        self._token, self._token_until_s = token, now.monotonic_s + TOKEN_TTL_S - TOKEN_RENEW_S


class _NoTokenError(SourceError):
    """Whatever answers there, it is no IMDSv2 for us."""


def _interruption(answer: Answer, now: Moment) -> Notice:
    document = answer.document()
    action, at = document.get("action"), _seconds(document.get("time"))
    if action not in {"terminate", "stop", "hibernate"}:
        raise SourceError(f"it names the action {str(action)[:40]!r}")
    said = str(document["time"])
    return Notice(
        _NAME,
        "preempt",
        f"AWS takes this spot instance back ({action} at {said})",
        f"aws {action} {said}",
        deadline_at(at, now, answer.wall_s),
    )


def _recommendation(answer: Answer) -> Notice:
    said = str(answer.document().get("noticeTime"))
    _seconds(said)
    return Notice(
        _NAME,
        "rebalance",
        f"AWS sees a raised risk for this spot instance (since {said})",
        f"aws rebalance {said}",
    )


def _seconds(text: object) -> float:
    try:
        found = datetime.fromisoformat(str(text))
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError) as error:
        raise SourceError(f"{str(text)[:40]!r} is no time") from error
