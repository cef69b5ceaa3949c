"""``python -m order_service`` serves; ``python -m order_service migrate`` migrates."""

from common.service import main
from order_service.settings import OrderSettings
from order_service.wiring import build

if __name__ == "__main__":
    main(OrderSettings, build)
