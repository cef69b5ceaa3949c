// The services for the scripts: addresses, connections, calls with retries.
//
// Addresses come from the environment, comma-separated, one for each replica (or only one, of a
// balancer): BALANCE, COUPON, ORDER, PAYMENT.

import grpc from 'k6/net/grpc';
import { Counter, Rate } from 'k6/metrics';

const PROTOS = import.meta.resolve('../../protos').replace('file://', '');
const CONNECT_TIMEOUT = '30s';
const CALL_TIMEOUT = '30s';
const TRIES_MAX = 8;
// How many unexpected responses each virtual user prints. All of them are counted.
const PRINTED_MAX = 3;

// Responses that no client of a healthy system gets.
export const unexpectedAnswers = new Counter('unexpected_answers');
const retries = new Counter('retried_calls');
const retried = new Rate('calls_retried');
let printed = 0;

export function required(name) {
  const value = __ENV[name];
  if (!value) {
    throw new Error(`${name} is not set; deploy/load/README.md describes it`);
  }
  return value;
}

export function whole(name, usual) {
  const value = Number(__ENV[name] || usual);
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new Error(`${name} must be a whole number above 0, not ${__ENV[name]}`);
  }
  return value;
}

// A share, which may be above 1.
export function share(name, usual) {
  const value = Number(__ENV[name] || usual);
  if (!(value >= 0)) {
    throw new Error(`${name} must be a number from 0, not ${__ENV[name]}`);
  }
  return value;
}

// A name for this run, which makes its ids unique. The runner sets one, with which it finds the keys
// in the gateway's record. Call it in setup() and pass it on: init code runs once for each virtual
// user, and each would get another name.
export function newRun() {
  return __ENV.RUN || `${Date.now()}`;
}

// A service's replicas. Create it in init code; every virtual user connects once, when it begins.
export class Replicas {
  constructor(variable, proto) {
    this.addresses = required(variable).split(',');
    this.clients = this.addresses.map(() => {
      const client = new grpc.Client();
      client.load([PROTOS, `${PROTOS}/third_party`], proto);
      return client;
    });
    this.connected = false;
  }

  connect() {
    if (this.connected) {
      return;
    }
    this.clients.forEach((client, at) => {
      client.connect(this.addresses[at], { plaintext: true, timeout: CONNECT_TIMEOUT });
    });
    this.connected = true;
  }

  // Sends one call to the replica that `turn` selects. The promise is of k6's response, with its
  // reason (from ErrorInfo; empty if OK), its replica, and its duration in ms.
  async call(method, request, turn) {
    this.connect();
    const client = this.clients[turn % this.clients.length];
    const began = Date.now();
    const response = await client.asyncInvoke(method, request, { timeout: CALL_TIMEOUT });
    return {
      status: response.status,
      message: response.message,
      error: response.error,
      took: Date.now() - began,
      reason: detail(response, 'ErrorInfo').reason || '',
      replica: (response.trailers['tally-replica'] || ['unnamed'])[0],
    };
  }

  // As call(), with the retries of a correct client: a call that may be repeated, by RetryInfo or
  // because it was not delivered (UNAVAILABLE without a reason), is sent to the next replica with the
  // same request_id. `took` includes all attempts and pauses.
  async callAgain(method, request, turn) {
    const began = Date.now();
    let response = await this.call(method, request, turn);
    let tries = 1;
    for (; tries < TRIES_MAX && mayBeRepeated(response); tries += 1) {
      retries.add(1);
      await pause(parseFloat(detail(response, 'RetryInfo').retryDelay || '0.2'));
      response = await this.call(method, request, turn + tries);
    }
    retried.add(tries > 1);
    response.took = Date.now() - began;
    return response;
  }
}

export function ok(response) {
  return response.status === grpc.StatusOK;
}

// Counts and prints a response that is an error of the service.
export function unexpected(what, response) {
  unexpectedAnswers.add(1);
  printed += 1;
  if (printed > PRINTED_MAX) {
    return;
  }
  const error = response.error || { message: JSON.stringify(response.message) };
  console.error(`${what}: status ${response.status} ${response.reason}: ${error.message}`);
}

export function won(amount) {
  return { currency_code: 'KRW', amount_minor: `${amount}` };
}

// An amount in a response, which has none if it is 0.
export function minor(money) {
  return money ? Number(money.amountMinor) : 0;
}

function mayBeRepeated(response) {
  const undelivered = response.status === grpc.StatusUnavailable && !response.reason;
  return undelivered || 'retryDelay' in detail(response, 'RetryInfo');
}

function detail(response, type) {
  const details = (response.error && response.error.details) || [];
  return details.find((one) => one['@type'] === `type.googleapis.com/google.rpc.${type}`) || {};
}

export function pause(seconds) {
  return new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
  });
}
