// A flash sale: every user charges a balance, races for a coupon with two calls at once, orders a
// product, and pays for it by coupon, balance and gateway. There are fewer coupons and products than
// users: both are sold out exactly, and every order is paid.
//
// Environment: BALANCE, COUPON, ORDER (addresses); USERS, VUS (users at a time), RUN, PUT_BACK_MAX
// (compensated attempts to pay, as a share of orders), RETRIED_MAX (calls that are sent more than
// once, as a share of calls) and SHARES (of the campaign), optional.

import exec from 'k6/execution';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { Replicas, minor, newRun, ok, pause, share, unexpected, whole, won } from './services.js';

const USERS = whole('USERS', 500);
const VUS = Math.min(whole('VUS', 10), USERS);
const COUPONS = Math.max(1, Math.floor(USERS * 0.3));
const STOCK = Math.max(1, Math.floor(USERS * 0.6));
const PUT_BACK_MAX = Math.floor(STOCK * share('PUT_BACK_MAX', 0.2));
const SHARES = whole('SHARES', 1);
const RETRIED_MAX = share('RETRIED_MAX', 0.1);
const CHARGE = 10000;
const PRICE = 9000;
const DISCOUNT = 1000;
const BY_BALANCE = 5000;
const PAY_TRIES_MAX = 5;
const PAY_PAUSE_S = 0.5;

const balance = new Replicas('BALANCE', 'tally/balance/v1/balance.proto');
const coupon = new Replicas('COUPON', 'tally/coupon/v1/coupon.proto');
const order = new Replicas('ORDER', 'tally/order/v1/order.proto');

const usersServed = new Counter('users_served');
const couponsIssued = new Counter('coupons_issued');
const couponsSoldOut = new Counter('coupons_sold_out');
const ordersPlaced = new Counter('orders_placed');
const ordersOutOfStock = new Counter('orders_out_of_stock');
const ordersPaid = new Counter('orders_paid');
const notCharged = new Counter('attempts_put_back');
const issueTook = new Trend('issue_coupon_duration', true);
const placeTook = new Trend('create_order_duration', true);
const payTook = new Trend('pay_order_duration', true);

export const options = {
  scenarios: {
    flash_sale: { executor: 'shared-iterations', vus: VUS, iterations: USERS, maxDuration: '30m' },
  },
  // The results of the sale, and no limit on any time.
  thresholds: {
    users_served: [`count==${USERS}`],
    coupons_issued: [`count==${COUPONS}`],
    orders_placed: [`count==${STOCK}`],
    orders_paid: [`count==${STOCK}`],
    // Each compensated attempt is repeated; a system that compensates all of them sells nothing.
    attempts_put_back: [`count<=${PUT_BACK_MAX}`],
    calls_retried: [`rate<=${RETRIED_MAX}`],
    unexpected_answers: ['count==0'],
    checks: ['rate==1'],
  },
  summaryTrendStats: ['min', 'med', 'p(95)', 'max'],
};

export async function setup() {
  const run = newRun();
  const campaign = await coupon.callAgain(
    'tally.coupon.v1.CouponService/CreateCampaign',
    {
      name: `Flash sale ${run}`,
      fixed_discount: won(DISCOUNT),
      quantity: `${COUPONS}`,
      shares: SHARES,
      start_time: '2024-01-01T00:00:00Z',
      end_time: '2100-01-01T00:00:00Z',
      coupon_lifetime: '604800s',
      request_id: `${run}:campaign`,
    },
    0,
  );
  const product = await order.callAgain(
    'tally.order.v1.ProductService/CreateProduct',
    { name: 'Print', price: won(PRICE), stock: `${STOCK}`, request_id: `${run}:product` },
    0,
  );
  if (!ok(campaign) || !ok(product)) {
    throw new Error(`the sale cannot begin: ${JSON.stringify([campaign.error, product.error])}`);
  }
  return {
    run,
    campaignId: campaign.message.campaign.campaignId,
    productId: product.message.product.productId,
  };
}

export default async function (sale) {
  const number = exec.scenario.iterationInTest;
  const user = { id: `${sale.run}:user:${number}`, number, key: `sale_${sale.run}_${number}` };
  await charge(user);
  const couponId = await raceForCoupon(sale, user);
  const orderId = await placeOrder(sale, user);
  if (orderId) {
    await pay(user, orderId, couponId);
  }
  usersServed.add(1);
}

async function charge(user) {
  const answer = await balance.callAgain(
    'tally.balance.v1.BalanceService/ChargeBalance',
    { user_id: user.id, amount: won(CHARGE), request_id: `${user.id}:charge` },
    user.number,
  );
  if (!ok(answer)) {
    unexpected('ChargeBalance', answer);
  }
}

// The coupon's id; undefined if none was left.
async function raceForCoupon(sale, user) {
  const answers = await Promise.all(
    [0, 1].map((number) =>
      coupon.callAgain(
        'tally.coupon.v1.CouponService/IssueCoupon',
        {
          campaign_id: sale.campaignId,
          user_id: user.id,
          request_id: `${user.id}:coupon:${number}`,
        },
        user.number + number,
      ),
    ),
  );
  answers.forEach((answer) => {
    issueTook.add(answer.took);
    if (!ok(answer) && !['COUPON_SOLD_OUT', 'COUPON_ALREADY_ISSUED'].includes(answer.reason)) {
      unexpected('IssueCoupon', answer);
    }
  });
  const got = answers.filter(ok);
  couponsIssued.add(got.length);
  const soldOut = answers.every((answer) => answer.reason === 'COUPON_SOLD_OUT');
  couponsSoldOut.add(soldOut ? 1 : 0);
  check(answers, {
    'one coupon for two calls, or none left': () =>
      soldOut ||
      (got.length === 1 && answers.some((one) => one.reason === 'COUPON_ALREADY_ISSUED')),
  });
  return got.length > 0 ? got[0].message.coupon.couponId : undefined;
}

// The order's id; undefined if the product was out of stock.
async function placeOrder(sale, user) {
  const answer = await order.callAgain(
    'tally.order.v1.OrderService/CreateOrder',
    {
      user_id: user.id,
      items: [{ product_id: sale.productId, quantity: '1' }],
      request_id: `${user.id}:order`,
    },
    user.number,
  );
  placeTook.add(answer.took);
  if (ok(answer)) {
    ordersPlaced.add(1);
    return answer.message.order.orderId;
  }
  if (answer.reason === 'OUT_OF_STOCK') {
    ordersOutOfStock.add(1);
  } else {
    unexpected('CreateOrder', answer);
  }
  return undefined;
}

// Pays. If nothing was charged and the attempt was compensated, it tries again, which is another
// intent with another request_id and payment key. On a slow machine some steps exceed their time
// limit and are compensated, so the pause doubles before each attempt.
async function pay(user, orderId, couponId) {
  let answer;
  for (let attempt = 0; attempt < PAY_TRIES_MAX; attempt += 1) {
    if (attempt > 0) {
      await pause(PAY_PAUSE_S * 2 ** (attempt - 1));
    }
    const request = {
      order_id: orderId,
      user_id: user.id,
      balance_amount: won(BY_BALANCE),
      payment_key: `${user.key}_${attempt}`,
      request_id: `${user.id}:pay:${attempt}`,
    };
    if (couponId) {
      request.coupon_id = couponId;
    }
    const turn = user.number + attempt + 1;
    answer = await order.callAgain('tally.order.v1.OrderService/PayOrder', request, turn);
    payTook.add(answer.took);
    if (answer.reason !== 'GATEWAY_UNAVAILABLE') {
      break;
    }
    notCharged.add(1);
  }
  if (!ok(answer) || answer.message.order.state !== 'STATE_PAID') {
    unexpected('PayOrder', answer);
    return;
  }
  ordersPaid.add(1);
  const total = PRICE - (couponId ? DISCOUNT : 0);
  check(answer.message.order, {
    'paid by coupon, balance and gateway, to the unit': (one) =>
      minor(one.paidByBalance) === BY_BALANCE && minor(one.paidByGateway) === total - BY_BALANCE,
  });
}

// What the services return after the sale.
export async function teardown(sale) {
  const campaign = await coupon.callAgain(
    'tally.coupon.v1.CouponService/GetCampaign',
    { campaign_id: sale.campaignId },
    0,
  );
  const product = await order.callAgain(
    'tally.order.v1.ProductService/GetProduct',
    { product_id: sale.productId },
    0,
  );
  check([campaign, product], {
    'all coupons are issued': () =>
      ok(campaign) && Number(campaign.message.campaign.issued) === COUPONS,
    'all products are sold': () =>
      ok(product) &&
      Number(product.message.product.sold) === STOCK &&
      Number(product.message.product.stock) === 0 &&
      Number(product.message.product.reserved) === 0,
  });
}
