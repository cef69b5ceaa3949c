"""`python -m deploy.reference [--check]`: the generated pages of docs/, from the code."""

from __future__ import annotations

import sys
from typing import Final

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from balance_service.settings import BalanceSettings
from common.environment import PREFIX, SECRETS_DIR, prefixes
from common.process_settings import ProcessSettings
from common.settings import ServiceSettings
from coupon_service.settings import CouponSettings
from deploy import access_reference, errors_reference, metrics_reference
from deploy.audit.settings import AuditSettings
from deploy.local.command_line import Flag, make_app, run_app
from deploy.local.plan import PROJECT
from deploy.supply import licences
from order_service.settings import OrderSettings
from payment_service.settings import PaymentSettings

SETTINGS: Final = (BalanceSettings, CouponSettings, OrderSettings, PaymentSettings)
DOCS: Final = PROJECT / "docs"

app = make_app("deploy.reference", "Write the generated pages of docs/ from the code.")

_INTRODUCTION: Final = f"""\
<!-- Written by `make docs` from the settings classes. Do not edit. -->

# Settings

A service reads its settings from the environment once, when it starts. A malformed setting ends it
with one line that names the variable and never its value.

Every setting can be given for one service (`{PREFIX}BALANCE_POOL_SIZE`) or for all services
(`{PREFIX}POOL_SIZE`); the service's own wins. With `{SECRETS_DIR}` set, a file in that directory
with the variable's name is read too; the variable itself wins over the file. Role and password of a
database URL in a file are read again for each new session. Settings whose names end in `_S` are in
seconds.

The settings of every service come first, then those of one service, with the defaults that differ
from the common ones, and at last those of `python -m deploy.audit serve`, which also reads the
addresses `{PREFIX}<SERVICE>_AUDIT_DATABASE_URL`, and `{PREFIX}REPLICA`, `{PREFIX}LOG_LEVEL` and
`{PREFIX}LOG_FORMAT`.

"""
_BOUND_SIGNS: Final = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """The whole page, as it has to be."""
    return _INTRODUCTION + reference(*SETTINGS, AuditSettings)


def reference(*settings_types: type[ProcessSettings]) -> str:
    """The settings as a Markdown table: those of every service, then each service's own."""
    common = ServiceSettings.model_fields
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [_row(PREFIX, name, field, field.description) for name, field in common.items()]
    for settings_type in settings_types:
        prefix = prefixes(settings_type.service)[0]
        # The audit is no service: it has its own `tls_dir`.
        is_service = issubclass(settings_type, ServiceSettings)
        inherits = common if is_service else ProcessSettings.model_fields
        for name, field in settings_type.model_fields.items():
            inherited = inherits.get(name)
            if inherited is None or inherited.get_default() != field.get_default():
                # A service may change a default and leave the meaning as it is.
                meaning = field.description or (inherited.description if inherited else None)
                rows.append(_row(prefix, name, field, meaning))
    return "\n".join(rows) + "\n"


def _row(prefix: str, name: str, field: FieldInfo, meaning: str | None) -> str:
    cells = (f"`{prefix}{name.upper()}`", _default(field), f"{meaning or ''} {_bounds(field)}")
    return f"| {' | '.join(cell.strip() for cell in cells)} |".replace("\n", " ")


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "documented_default" in extra:
        return str(extra["documented_default"])
    if field.is_required():
        return "(required)"
    default = field.get_default()
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return f"`{text}`" if text else "(none)"


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, sign in _BOUND_SIGNS.items()
        if getattr(constraint, name, None) is not None
    ]
    return f"({', '.join(found)})" if found else ""


@app.default
def main(*, check: Flag = False) -> int:
    """Write the pages; with --check write nothing, and exit 1 if one is not up to date."""
    stale = False
    pages = {
        "settings.md": page(),
        "metrics.md": metrics_reference.page(),
        "errors.md": errors_reference.page(),
        "access.md": access_reference.page(SETTINGS),
        "licences.md": licences.page(),
    }
    for name, text in pages.items():
        file = DOCS / name
        if not check:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"docs/{name} is not up to date: run `make docs`\n")
            stale = True
    return int(stale)


if __name__ == "__main__":
    run_app(app)
