// The services as the scripts meet them: addresses, connections, answers told by their reason.
//
// Addresses come from the environment, comma-separated, one for each replica (or one alone, of a
// balancer): BALANCE, COUPON, ORDER, PAYMENT.

import grpc from 'k6/net/grpc';
import { Counter, Rate } from 'k6/metrics';

const PROTOS = import.meta.resolve('../../protos').replace('file://', '');
const CONNECT_TIMEOUT = '30s';
const CALL_TIMEOUT = '30s';
const TRIES_MAX = 8;
// Of the unexpected answers each virtual user prints only so many: all of them are counted.
const TOLD_MAX = 3;

// Answers that no client of a healthy system should see.
export const unexpectedAnswers = new Counter('unexpected_answers');
const retries = new Counter('retried_calls');
const retried = new Rate('calls_retried');
let told = 0;

export function required(name) {
  const value = __ENV[name];
  if (!value) {
    throw new Error(`${name} is not set; deploy/load/README.md tells what it is for`);
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

// A part of something; more than the whole, where it can be exceeded.
export function share(name, usual) {
  const value = Number(__ENV[name] || usual);
  if (!(value >= 0)) {
    throw new Error(`${name} must be a number from 0, not ${__ENV[name]}`);
  }
  return value;
}

// A name for this run, whose ids must be new. The runner gives one, so that it finds the keys at
// the gateway afterwards. For setup() to ask for and hand on: init code runs once for each virtual
// user, and each would have a name of its own.
export function newRun() {
  return __ENV.RUN || `${Date.now()}`;
}

// A service's replicas. To be made in init code; every virtual user connects once, when it begins.
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

  // Sends one call to the replica whose turn it is. The promise is of what k6 tells of the
  // response, with its reason (of ErrorInfo; empty if OK), its replica, and what it took in ms.
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

  // As call(), and does what a correct client does: what the service (RetryInfo) or the way to it
  // (UNAVAILABLE without a reason) says may be repeated is sent again, to the next replica, under
  // its request_id. `took` is of all tries and the waiting between.
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

// Counts, and prints, an answer that should not have been given.
export function unexpected(what, response) {
  unexpectedAnswers.add(1);
  told += 1;
  if (told > TOLD_MAX) {
    return;
  }
  const error = response.error || { message: JSON.stringify(response.message) };
  console.error(`${what}: status ${response.status} ${response.reason}: ${error.message}`);
}

export function won(amount) {
  return { currency_code: 'KRW', amount_minor: `${amount}` };
}

// An amount told by a service, which leaves it out where there is none.
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
