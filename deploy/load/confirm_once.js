// R7: five confirmations of one payment key, sent at once over all replicas. One pays, four are
// refused. Then the one that paid is sent again: it gets the first response, and pays nothing.
//
// `python -m deploy.load` checks afterwards, in the gateway's record, that the gateway was called
// once for each key.
//
// Environment: PAYMENT (addresses); ROUNDS, VUS (rounds at a time), RUN and REPLICAS, all optional.
// REPLICAS are names, as in tally-replica, over which calls must be spread evenly. Set it only with
// the address of a balancer: with the replicas' addresses, this script itself calls them in turn.

import exec from 'k6/execution';
import grpc from 'k6/net/grpc';
import { check } from 'k6';
import { Counter, Rate, Trend } from 'k6/metrics';
import { Replicas, newRun, ok, unexpected, whole, won } from './services.js';

const DUPLICATES = 5;
const CALLS_PER_ROUND = DUPLICATES + 1;
// The share of rounds in which at least one duplicate must arrive while another one pays. Calls one
// after another are not concurrent, and any unique key would refuse them.
const MET_SHARE_MIN = 0.8;
const METHOD = 'tally.payment.v1.PaymentService/ConfirmPayment';
const ROUNDS = whole('ROUNDS', 1000);
const VUS = Math.min(whole('VUS', 10), ROUNDS);
const REPLICAS = (__ENV.REPLICAS || '').split(',').filter((name) => name);

const payment = new Replicas('PAYMENT', 'tally/payment/v1/payment.proto');

const roundsPlayed = new Counter('rounds_played');
const exactlyOneSuccess = new Rate('rounds_with_exactly_one_success');
const rivalsMet = new Rate('rounds_with_a_rival_in_progress');
const paid = new Counter('confirmations_paid');
const inProgress = new Counter('refused_payment_in_progress');
const keyUsed = new Counter('refused_payment_key_used');
const calls = new Counter('calls_by_replica');
const paidTook = new Trend('confirmation_paid_duration', true);
const refusedTook = new Trend('confirmation_refused_duration', true);

export const options = {
  scenarios: {
    confirm_once: {
      executor: 'shared-iterations',
      vus: VUS,
      iterations: ROUNDS,
      maxDuration: '30m',
    },
  },
  // No limit on any time: correctness does not depend on the machine.
  thresholds: {
    // A rate without values would hold, so all rounds must have ended.
    rounds_played: [`count==${ROUNDS}`],
    rounds_with_exactly_one_success: ['rate==1'],
    rounds_with_a_rival_in_progress: [`rate>=${MET_SHARE_MIN}`],
    confirmations_paid: [`count==${ROUNDS}`],
    unexpected_answers: ['count==0'],
    checks: ['rate==1'],
    ...evenlySpread(),
  },
  summaryTrendStats: ['min', 'med', 'p(95)', 'max'],
};

function evenlySpread() {
  const share = (ROUNDS * CALLS_PER_ROUND) / REPLICAS.length;
  const limits = [`count>=${Math.floor(share * 0.8)}`, `count<=${Math.ceil(share * 1.2)}`];
  return Object.fromEntries(REPLICAS.map((name) => [`calls_by_replica{replica:${name}}`, limits]));
}

export function setup() {
  return newRun();
}

export default async function (run) {
  const round = exec.scenario.iterationInTest;
  const intent = (number) => ({
    order_id: `${run}:${round}`,
    user_id: `user:${round}`,
    amount: won(1000 + round),
    payment_key: `once_${run}_${round}`,
    request_id: `${run}:${round}:${number}`,
  });
  const turn = round * CALLS_PER_ROUND;
  payment.connect();

  const numbers = Array.from({ length: DUPLICATES }, (_, number) => number);
  const answers = await Promise.all(
    numbers.map((number) => payment.call(METHOD, intent(number), turn + number)),
  );
  answers.forEach(account);
  const winners = numbers.filter((number) => ok(answers[number]));
  exactlyOneSuccess.add(winners.length === 1);
  rivalsMet.add(answers.some((answer) => answer.reason === 'PAYMENT_IN_PROGRESS'));
  check(answers, {
    'one of five pays': () => winners.length === 1,
    'the others are refused': () => answers.filter(refused).length === DUPLICATES - 1,
  });

  if (winners.length > 0) {
    const [winner] = winners;
    const late = await payment.call(METHOD, intent(winner), turn + DUPLICATES);
    calls.add(1, { replica: late.replica });
    const replayed = check(late, {
      'a late duplicate gets the first response': (answer) =>
        ok(answer) &&
        answer.message.replayed &&
        answer.message.payment.paymentId === answers[winner].message.payment.paymentId,
    });
    if (!replayed) {
      unexpected('the late duplicate', late);
    }
  }
  roundsPlayed.add(1);
}

function account(answer) {
  calls.add(1, { replica: answer.replica });
  if (ok(answer) && answer.message.payment.state === 'STATE_CONFIRMED' && !answer.message.replayed) {
    paid.add(1);
    paidTook.add(answer.took);
  } else if (refused(answer)) {
    (answer.reason === 'PAYMENT_IN_PROGRESS' ? inProgress : keyUsed).add(1);
    refusedTook.add(answer.took);
  } else {
    unexpected('a confirmation', answer);
  }
}

function refused(answer) {
  return (
    (answer.status === grpc.StatusAborted && answer.reason === 'PAYMENT_IN_PROGRESS') ||
    (answer.status === grpc.StatusAlreadyExists && answer.reason === 'PAYMENT_KEY_USED')
  );
}
