"""The settings of ``python -m deploy.audit serve``."""

from __future__ import annotations

from datetime import time
from typing import ClassVar, Final

from pydantic import Field

from common.setting_types import AbsolutePath, count, seconds
from common.urls import BindAddress
from deploy.audit.audit import OVERDUE_S, Limits
from deploy.audit.sources import AuditDatabaseSettings

A_DAY_S: Final = 86_400


class AuditSettings(AuditDatabaseSettings):
    needed_to_serve: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: str = Field(
        default="",
        description="File in which the audit keeps the time of its last full verdict, and what "
        "stood then. Needed to serve; without the file, the first verdict is a full one.",
    )
    metrics_bind: BindAddress = Field(
        default="127.0.0.1:9465",
        description="host:port of the audit's Prometheus page; port 0 is any free port.",
    )
    tls_dir: AbsolutePath = Field(
        default="",
        description="Directory with `tls.crt` and `tls.key`, with which the page is served over "
        "HTTPS; read again every 10 s. Empty: plaintext.",
    )
    recent_interval_s: float = seconds(
        3600.0,
        "Time between two audits of what was touched since the last full verdict.",
        most=A_DAY_S,
    )
    full_at: time = Field(
        default=time(3, 0),
        description="Time of day, in UTC, of the full audit, such as 03:00.",
    )
    retry_s: float = seconds(
        300.0, "Time after which an audit that could not read the books is repeated.", most=A_DAY_S
    )
    longest_transaction_s: float = seconds(
        300.0,
        "How long a transaction may run before it commits: what was touched is searched from this "
        "long before the last full verdict. Longer than any transaction of the services, and of a "
        "person who changes rows.",
        most=A_DAY_S,
    )
    settle_s: float = seconds(
        60.0,
        "For how long an audit is repeated while a difference is unexplained: the databases are "
        "read one after another, so a busy service shows some that the next look does not.",
        most=3600,
        least=0,
    )
    overdue_s: float = seconds(
        OVERDUE_S,
        "For how long an order, payment or saga may be due before it counts as a difference.",
        most=A_DAY_S,
    )
    gateway_days: int = count(
        2,
        "Days after a payment's last change in which a full audit looks it up at the gateway "
        "(TALLY_PAYMENT_GATEWAY_URL and _SECRET_KEY); 0: the gateway is never asked.",
        most=365,
        least=0,
    )

    @property
    def limits(self) -> Limits:
        """The time limits of one audit."""
        return Limits(self.settle_s, self.overdue_s)
