"""`python -m deploy.reference [--check]`: docs/settings.md, written from the settings' classes."""

from __future__ import annotations

import sys
from typing import Final

from balance_service.settings import BalanceSettings
from common.settings import PREFIX, SECRETS_DIR, reference
from coupon_service.settings import CouponSettings
from deploy.local.plan import PROJECT
from order_service.settings import OrderSettings
from payment_service.settings import PaymentSettings

SETTINGS: Final = (BalanceSettings, CouponSettings, OrderSettings, PaymentSettings)
PAGE: Final = PROJECT / "docs" / "settings.md"

_INTRODUCTION: Final = f"""\
<!-- Written by `make docs` from the settings classes. Do not edit. -->

# Settings

A service reads its settings from the environment once, when it starts. A mistake ends it with one
line that names the variable and never its value.

Every setting can be given for one service (`{PREFIX}BALANCE_POOL_SIZE`) or for all of them at once
(`{PREFIX}POOL_SIZE`); the service's own wins. With `{SECRETS_DIR}` set, a file in that directory
with the variable's name counts as well, after the variable itself. Names that end in `_S` are in
seconds.

The settings that every service has come first, then those of one service, and defaults that differ
from the common ones.

"""


def page() -> str:
    """The whole page, as it has to be."""
    return _INTRODUCTION + reference(*SETTINGS)


def main(arguments: list[str]) -> int:
    """Write the page; with ``--check`` write nothing, and return 1 if it is not up to date."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m deploy.reference [--check]\n")
        return 2
    if not arguments:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.stderr.write(f"{PAGE.relative_to(PROJECT)} is not up to date: run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
