"""One audit after another: each verdict goes to the log, the metrics and the checkpoint."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog
from pydantic import SecretStr

from deploy.audit import metrics
from deploy.audit.audit import audit
from deploy.audit.audit_pass import Note
from deploy.audit.checkpoint import Checkpoint, full_of, verdict_of
from deploy.audit.errors import CannotAudit
from deploy.audit.gateway_api import GatewayAddress
from deploy.audit.report import Report
from deploy.audit.schedule import FULL, wall_clock
from deploy.audit.settings import AuditSettings
from deploy.audit.sources import Sources, urls_of_settings, value_of
from deploy.audit.touched import Since

LOGGED_MAX: Final = 20
"""How many differences, and new cases of what stands, are in the line of a verdict."""

_log = structlog.stdlib.get_logger()


class Auditor:
    """Audits the databases and the gateway that the settings name."""

    def __init__(self, settings: AuditSettings, checkpoint: Checkpoint) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self.memory = checkpoint.read()
        """What is known of the last verdicts."""
        metrics.export(self.memory)

    async def run(self, scope: str) -> bool:
        """Audit once; whether there is a verdict. A failure is logged and counted."""
        start = wall_clock()
        metrics.STARTED.labels(scope).set(start.timestamp())
        try:
            since = None if scope == FULL else self._since()
            report = await audit(sources_of_settings(self._settings), self._settings.limits, since)
            first = scope == FULL and self.memory.full is None
            new = self._remember(report, scope, start.timestamp())
        except (CannotAudit, OSError) as error:
            metrics.RUNS.labels(scope, "failed").inc()
            _log.warning("audit_failed", scope=scope, reason=str(error))
            return False
        except Exception:  # noqa: BLE001 - the next audit may succeed
            metrics.RUNS.labels(scope, "failed").inc()
            _log.exception("audit_failed", scope=scope, reason="a defect of the audit")
            return False
        metrics.RUNS.labels(scope, "holds" if report.holds else "breach").inc()
        _log_verdict(report, scope, new, (wall_clock() - start).total_seconds(), first=first)
        return True

    def _since(self) -> Since | None:
        """By service, when what is not in the last full verdict may have been written first."""
        if self.memory.full is None:
            return None
        longest = timedelta(seconds=self._settings.longest_transaction_s)
        return {service: time - longest for service, time in self.memory.full.snapshots.items()}

    def _remember(self, report: Report, scope: str, start: float) -> list[str]:
        """Write the verdict down and export it; the cases that stand since the last full one."""
        new: list[str] = []
        completion = wall_clock().timestamp()
        memory = self.memory.model_copy()
        if scope == FULL:
            # Without a full verdict before it, every case would be new, also the oldest.
            known = report.standing if memory.full is None else {*memory.full.standing}
            new = [text for case, text in report.standing.items() if case not in known]
            memory.full = full_of(report, start, completion, len(new))
        else:
            memory.recent = verdict_of(report, start, completion)
        self._checkpoint.write(memory)
        self.memory = memory
        metrics.export(memory)
        return new


def sources_of_settings(settings: AuditSettings) -> Sources:
    """The databases and the gateway that the settings name, read anew. Raises CannotAudit."""
    urls = urls_of_settings()
    if not urls:
        raise CannotAudit("TALLY_BALANCE_AUDIT_DATABASE_URL is not set, nor that of any service")
    return Sources(urls, gateway_api=gateway_of_settings(settings.gateway_days))


def gateway_of_settings(days: int) -> GatewayAddress | None:
    """The gateway's API, if the payment service's settings name it. Raises CannotAudit."""
    url, key = value_of("payment", "gateway_url"), value_of("payment", "gateway_secret_key")
    if not url or not days:
        return None
    if not key:
        raise CannotAudit("TALLY_PAYMENT_GATEWAY_URL is set and _SECRET_KEY is not")
    return GatewayAddress(url.rstrip("/"), SecretStr(key), days)


def _log_verdict(report: Report, scope: str, new: list[str], took_s: float, *, first: bool) -> None:
    log = _log.info if report.holds else _log.error
    differences = [text for line in report.lines for text in line.differences]
    log(
        "audit_verdict",
        scope=scope,
        first=first,
        since={service: time.isoformat() for service, time in (report.since or {}).items()} or None,
        holds=report.holds,
        broken=report.broken,
        breaches=report.breaches,
        differences=list(dict.fromkeys(differences))[:LOGGED_MAX],
        not_checked=list(report.left_out),
        under_way=report.noted(Note.UNDER_WAY),
        being_given_back=report.noted(Note.GIVING_BACK),
        needs_attention=report.noted(Note.NEEDS_ATTENTION),
        standing=report.noted(Note.STANDING),
        foreign=report.noted(Note.FOREIGN),
        new_standing=new[:LOGGED_MAX],
        passes=report.passes,
        seconds=round(took_s, 1),
    )
