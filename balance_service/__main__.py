"""``python -m balance_service`` serves; ``python -m balance_service migrate`` migrates."""

from balance_service.settings import BalanceSettings
from balance_service.wiring import build
from common.service import main

if __name__ == "__main__":
    main(BalanceSettings, build)
