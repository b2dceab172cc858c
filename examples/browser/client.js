// A client of Dinemesh for the browser: HTTP and JSON through the edge, with nothing but fetch.
//
//     import { Dinemesh } from "./client.js";
//     const dinemesh = new Dinemesh("http://127.0.0.1:8080", token);
//     const { slots, policyEtag } = await dinemesh.slots(restaurantId, "2030-12-24", 2);
//     const order = { restaurantId, dineTime: slots[0].dineTime, partySize: 2, policyEtag, paymentToken: "tok_visa" };
//     const reservation = await dinemesh.book(order);
//     for await (const update of dinemesh.watch(reservation.reservationId)) console.log(update);
//     const { refunded, forfeited } = await dinemesh.cancel(reservation.reservationId);
//
// Four rules of the contract (protos/) are what is worth copying from here:
//
// 1. A change carries a requestId that the client chose. The same change sent again with the same requestId is done
//    once, so a call that was lost, or refused with a time, is simply repeated.
// 2. A refusal with a RetryInfo (and the header retry-after) is repeated after that time, not before. A refusal
//    without one is final. Decide by its reason, never by the text of its message.
// 3. A stream that ends without the message `end` is broken, however clean it looks.
// 4. Every wait has an end.

/** A call that changes something takes as long as a payment takes; the edge's own deadline is 10 s. */
const DEADLINE_MS = 15_000;
/** For how long a call that may be repeated is repeated. */
const PATIENCE_MS = 60_000;
/** The server sends a heartbeat at least every 15 s; after three that are missing the connection is dead. */
const SILENCE_MS = 45_000;
/** Pause before something that was lost is tried again: the first, doubled each time up to the longest. */
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5_000;

/** The server's No, as google.rpc.Status says it. */
export class Refusal extends Error {
  constructor(response, status) {
    const details = Object.fromEntries(
      (status.details ?? []).map((detail) => [detail["@type"]?.split(".").pop(), detail]),
    );
    super(status.message ?? response.statusText);
    this.name = "Refusal";
    /** The HTTP status. */
    this.httpStatus = response.status;
    /** Why, by name: "SLOT_UNAVAILABLE", "CARD_DECLINED", ... See protos/dinemesh/error/v1/reason.proto. */
    this.reason = details.ErrorInfo?.reason ?? "";
    /** What is wrong with which field: [{ field, description }]. */
    this.fields = details.BadRequest?.fieldViolations ?? [];
    /** After how many milliseconds a repetition makes sense, or null if it makes none. */
    this.retryAfterMs = milliseconds(details.RetryInfo?.retryDelay, response.headers.get("retry-after"));
    /** Names this call in every log line of the servers. */
    this.correlationId = response.headers.get("x-correlation-id") ?? "";
  }
}

/** No answer came: the network, the edge or this page's origin (CORS) is in the way; a page cannot tell which.
 *  Whether a change was made is not known. */
export class Lost extends Error {
  constructor(cause) {
    super(cause?.name === "TimeoutError" ? "no answer in time" : "no answer");
    this.name = "Lost";
    this.cause = cause;
  }
}

export class Dinemesh {
  #edge;
  #token;
  #onCall;

  /**
   * @param {string} edge   address of the edge, "http://127.0.0.1:8080"
   * @param {string} token  the customer's bearer token; what anyone may read needs none
   * @param {(call: object) => void} [onCall]  told of every answer and every repetition, to show or to log:
   *   { correlationId, path, status } or { correlationId, path, error, againInMs }
   */
  constructor(edge, token = "", onCall = () => {}) {
    this.#edge = edge.replace(/\/+$/, "");
    this.#token = token;
    this.#onCall = onCall;
  }

  /** All restaurants, page by page. */
  async *restaurants() {
    let pageToken = "";
    do {
      const page = await this.#call("GET", `/v1/restaurants?${new URLSearchParams({ page_token: pageToken })}`);
      yield* page.restaurants ?? [];
      pageToken = page.nextPageToken;
    } while (pageToken);
  }

  /** One restaurant as it is now, with its terms. */
  async restaurant(restaurantId) {
    return (await this.#call("GET", `/v1/restaurants/${encodeURIComponent(restaurantId)}`)).restaurant;
  }

  /**
   * The tables of one day ("2030-12-24", in the restaurant's time zone): { slots, timeZone, policyEtag }. The last one
   * names the terms that are shown; to be sent with the booking.
   */
  async slots(restaurantId, date, partySize) {
    const query = new URLSearchParams({ date, party_size: partySize });
    return this.#call("GET", `/v1/restaurants/${encodeURIComponent(restaurantId)}/availableSlots?${query}`);
  }

  /**
   * Pays the deposit and reserves. Repeats when told to come again and when the answer was lost: by its requestId it
   * books and charges once. Resolves to the reservation; throws a Refusal, or Lost when patience ends. Its reason is
   * POLICY_CHANGED if the restaurant's terms are not those of policyEtag: nothing was booked, show the new ones.
   */
  async book(order) {
    const { note = "", requestId = crypto.randomUUID(), ...asked } = order; // restaurantId, dineTime, partySize, ...
    return (await this.#repeat("POST", "/v1/reservations", { requestId, ...asked, note })).reservation;
  }

  /** One reservation as it stands. */
  async reservation(reservationId) {
    return (await this.#call("GET", `/v1/reservations/${encodeURIComponent(reservationId)}`)).reservation;
  }

  /** Cancels; resolves to { reservation, refunded, forfeited }. A repetition gets the same answer. */
  async cancel(reservationId) {
    return this.#repeat("POST", `/v1/reservations/${encodeURIComponent(reservationId)}:cancel`, {});
  }

  /**
   * Follows a reservation to its end, over as many connections as that takes. Yields
   *   { kind: "open" }                        a connection stands
   *   { kind: "reservation", reservation }    as it stands now; first of all after each connection
   *   { kind: "heartbeat" }                   nothing new
   *   { kind: "stopping", againInMs }         the server said that it ends this stream (it stops, or the stream is
   *                                           too old); connecting again
   *   { kind: "broken", againInMs, stood, error }  it ended without a word (stood), or it could not be had (not stood;
   *                                           error says why); connecting again
   *   { kind: "finished" }                    the reservation has come to its end: the last one
   * Throws a Refusal that another try would not change. `signal` ends it.
   */
  async *watch(reservationId, { signal } = {}) {
    const path = `/v1/reservations/${encodeURIComponent(reservationId)}:watch`;
    let pause = FIRST_PAUSE_MS;
    while (!signal?.aborted) {
      let end = null;
      let stood = false;
      let error = null;
      try {
        for await (const message of this.#stream(path, signal)) {
          if (message.end) {
            end = message.end.reason;
            break;
          }
          stood = true;
          if (message.reservation || message.heartbeat) pause = FIRST_PAUSE_MS;
          if (message.reservation) yield { kind: "reservation", reservation: message.reservation };
          else if (message.heartbeat) yield { kind: "heartbeat" };
          else yield { kind: "open" };
        }
      } catch (caught) {
        if (signal?.aborted) return;
        const final = caught instanceof Refusal && caught.retryAfterMs === null && caught.httpStatus < 500;
        if (final || !(caught instanceof Refusal || caught instanceof Lost)) throw caught;
        error = caught;
      }
      if (end === "END_REASON_FINISHED") {
        yield { kind: "finished" };
        return;
      }
      const againInMs = Math.max(jittered(pause), error?.retryAfterMs ?? 0);
      yield end ? { kind: "stopping", reason: end, againInMs } : { kind: "broken", stood, error, againInMs };
      await wait(againInMs, signal);
      pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
    }
  }

  /** One connection of a watch: {} once it stands, then its messages, one line of JSON each. */
  async *#stream(path, signal) {
    const silent = new AbortController();
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silent.abort(new DOMException("silent", "TimeoutError")), SILENCE_MS);
    };
    alive();
    try {
      const response = await this.#fetch("GET", path, undefined, crypto.randomUUID(), [silent.signal, signal]);
      yield {};
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let unfinished = "";
      for (;;) {
        const { done, value } = await reader.read().catch((cause) => {
          throw new Lost(cause);
        });
        if (done) return; // What is unfinished was cut off: a line counts when its end has come.
        alive();
        const lines = (unfinished + value).split("\n");
        unfinished = lines.pop();
        for (const line of lines) if (line.trim()) yield JSON.parse(line);
      }
    } finally {
      clearTimeout(timer);
      silent.abort(); // whoever stops listening also ends the connection
    }
  }

  /** A call for something that changes: repeated as long as that makes sense, all under one correlation id. */
  async #repeat(method, path, body) {
    const correlationId = crypto.randomUUID();
    const end = performance.now() + PATIENCE_MS;
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(pause * 2, LONGEST_PAUSE_MS)) {
      try {
        return await this.#call(method, path, body, correlationId);
      } catch (error) {
        const againInMs = error instanceof Lost ? jittered(pause) : error.retryAfterMs ?? null;
        if (againInMs === null || performance.now() + againInMs > end) throw error;
        this.#onCall({ correlationId, path, error, againInMs });
        await wait(againInMs);
      }
    }
  }

  async #call(method, path, body, correlationId = crypto.randomUUID()) {
    const response = await this.#fetch(method, path, body, correlationId, [AbortSignal.timeout(DEADLINE_MS)]);
    try {
      return await response.json();
    } catch (cause) {
      throw new Lost(cause); // cut off in the middle
    }
  }

  /** The response once its head has come; throws a Refusal or Lost. */
  async #fetch(method, path, body, correlationId, signals) {
    const headers = { "x-correlation-id": correlationId };
    if (this.#token) headers.authorization = `Bearer ${this.#token}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(this.#edge + path, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
        credentials: "omit", // the token says who we are
        signal: AbortSignal.any(signals.filter(Boolean)),
      });
    } catch (cause) {
      throw new Lost(cause);
    }
    this.#onCall({ correlationId: response.headers.get("x-correlation-id"), path, status: response.status });
    if (response.ok) return response;
    throw new Refusal(response, await response.json().catch(() => ({})));
  }
}

/** "1.5s" of a RetryInfo; else whole seconds of a retry-after; else null. */
function milliseconds(retryDelay, retryAfter) {
  const seconds = parseFloat(retryDelay ?? retryAfter ?? "");
  return Number.isFinite(seconds) ? seconds * 1000 : null;
}

/** Somewhat more or less, so that the many that lost one server do not all come back in the same moment. */
function jittered(ms) {
  return Math.round(ms * (0.75 + Math.random() / 2));
}

/** Waits; ends early when `signal` says so. */
function wait(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
