"""``python -m coupon_service`` serves; ``python -m coupon_service migrate`` migrates."""

from common.service import main
from coupon_service.settings import CouponSettings
from coupon_service.wiring import build

if __name__ == "__main__":
    main(CouponSettings, build)
