"""``python -m payment_service`` serves; ``python -m payment_service migrate`` migrates."""

from common.service import main
from payment_service.settings import PaymentSettings
from payment_service.wiring import build

if __name__ == "__main__":
    main(PaymentSettings, build)
