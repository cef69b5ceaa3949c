// Clients of the services: addresses, connections, calls with retries.
//
// Addresses come from the environment: BALANCE, COUPON, ORDER, PAYMENT, each with the addresses of
// the replicas, comma-separated, or that of a load balancer.

import grpc from 'k6/net/grpc';
import { Counter, Rate } from 'k6/metrics';

const PROTOS = import.meta.resolve('../../protos').replace('file://', '');
const CONNECT_TIMEOUT = '30s';
const CALL_TIMEOUT = '30s';
const ATTEMPTS_MAX = 8;
// Each virtual user prints at most this many unexpected responses. All are counted.
const PRINTED_MAX = 3;

// Responses that no client of a healthy system should get.
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

// The name of this run, which all its ids contain. The runner sets it, to find the payment keys in
// the gateway's record afterwards. Call it in setup(): init code runs once for each virtual user,
// so each would have a different name.
export function newRun() {
  return __ENV.RUN || `${Date.now()}`;
}

// The replicas of a service. Create it in init code; each virtual user connects once, at its start.
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

  // Sends one call to the replica number `turn`, modulo the number of replicas. Resolves to the
  // response, with the reason of its ErrorInfo (empty if OK), its replica and its time in ms.
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

  // As call(), with retries on the next replica with the same request_id, after a RetryInfo or an
  // UNAVAILABLE without a reason (the call did not arrive). `took` includes all attempts and the
  // waits between them.
  async callWithRetries(method, request, turn) {
    const began = Date.now();
    let response = await this.call(method, request, turn);
    let attempts = 1;
    for (; attempts < ATTEMPTS_MAX && isRetryable(response); attempts += 1) {
      retries.add(1);
      await pause(parseFloat(detail(response, 'RetryInfo').retryDelay || '0.2'));
      response = await this.call(method, request, turn + attempts);
    }
    retried.add(attempts > 1);
    response.took = Date.now() - began;
    return response;
  }
}

export function ok(response) {
  return response.status === grpc.StatusOK;
}

// Counts and prints a response that the service should not have sent.
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

// The amount of a Money field, which is absent if the amount is zero.
export function minor(money) {
  return money ? Number(money.amountMinor) : 0;
}

function isRetryable(response) {
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
