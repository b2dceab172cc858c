// The page: forms in, words out. All that is to be known about calling Dinemesh is in client.js.

import { Dinemesh, Lost, Refusal } from "./client.js";

const at = (id) => document.getElementById(id);

let dinemesh = null;
let restaurants = new Map();
let shown = null; // { restaurantId, partySize, policyEtag } of the tables to choose from: what a booking is held to
let watched = null; // { id, timeZone, stop }

// ---- who, where, when ----

at("connect").addEventListener("submit", (event) => doing(event, async () => {
  dinemesh = new Dinemesh(at("edge").value, at("token").value.trim(), traced);
  restaurants = new Map();
  for await (const one of dinemesh.restaurants()) restaurants.set(one.restaurantId, one);
  at("restaurant").replaceChildren(...[...restaurants.values()].map((one) => new Option(one.name, one.restaurantId)));
  at("search").hidden = restaurants.size === 0;
  at("book").hidden = true;
  if (restaurants.size === 0) notice("info", "There is no restaurant yet.");
  else showTerms();
}));

at("restaurant").addEventListener("change", showTerms);

function showTerms() {
  const { policy, timeZone } = restaurants.get(at("restaurant").value);
  const free = policy.freeCancelWindowSeconds / 3600;
  at("party").max = policy.maxPartySize;
  at("terms").textContent =
    `Deposit ${money(policy.depositPerPerson)} a person, free to cancel until ${Number(free.toFixed(1))} h before. ` +
    (policy.acceptance === "ACCEPTANCE_MODE_AUTO" ? "Confirmed at once." : "Confirmed by a person.") +
    ` Times in ${timeZone}.`;
}

at("search").addEventListener("submit", (event) => doing(event, async () => {
  at("book").hidden = true; // the times of another search
  const partySize = Number(at("party").value);
  const restaurantId = at("restaurant").value;
  const { slots = [], timeZone, policyEtag } = await dinemesh.slots(restaurantId, at("date").value, partySize);
  if (restaurants.get(restaurantId).policyEtag !== policyEtag) {
    restaurants.set(restaurantId, await dinemesh.restaurant(restaurantId));
    showTerms();
  }
  if (restaurants.get(restaurantId).policyEtag !== policyEtag) {
    notice("info", "New terms", "The restaurant is changing its terms. Please ask again in a moment.");
    return; // the times are not of the terms above them: nobody shall agree to what they did not see
  }
  shown = { restaurantId, partySize, policyEtag };
  at("slots").replaceChildren(...slots.map((slot) => slotChoice(slot, timeZone)));
  at("slots-title").textContent = slots.length ? `Times, deposit ${money(slots[0].deposit)}` : "No table on that day";
  at("book").hidden = false;
  at("book-button").disabled = !slots.some((slot) => slot.available);
}));

function slotChoice(slot, timeZone) {
  const label = document.createElement("label");
  const choice = Object.assign(document.createElement("input"), {
    type: "radio", name: "slot", value: slot.dineTime, required: true, disabled: !slot.available,
  });
  label.append(choice, local(slot.dineTime, timeZone, { timeStyle: "short" }));
  if (!slot.available) label.title = "full";
  return label;
}

// ---- book, watch, cancel ----

at("book").addEventListener("submit", (event) => doing(event, async () => {
  const restaurant = restaurants.get(shown.restaurantId);
  const reservation = await dinemesh.book({
    ...shown,
    dineTime: new FormData(at("book")).get("slot"),
    paymentToken: at("card").value,
    note: at("note").value,
  });
  notice("good", "Booked", `The deposit is paid; ${restaurant.name} is asked.`);
  watch(reservation, restaurant);
}));

async function watch(reservation, restaurant) {
  watched?.stop.abort();
  const mine = { id: reservation.reservationId, restaurant, stop: new AbortController() };
  watched = mine;
  at("update").replaceChildren();
  at("reservation").hidden = false;
  show(reservation, restaurant);
  try {
    for await (const update of dinemesh.watch(mine.id, { signal: mine.stop.signal })) {
      if (watched !== mine) return;
      tell[update.kind](update, mine);
    }
  } catch (error) {
    connection("ended", "not followed any more");
    refused(error);
  }
}

const again = (update) => `Connecting again in ${(update.againInMs / 1000).toFixed(1)} s.`;
const tell = {
  open: () => connection("live", "live"),
  heartbeat: () => connection("live", "live", `a heartbeat came at ${new Date().toLocaleTimeString("en-GB")}`),
  reservation: ({ reservation }, { restaurant }) => {
    connection("live", "live");
    show(reservation, restaurant);
    line("reservation", words(reservation.state));
  },
  stopping: (update) => {
    connection("stopping", "the server stops");
    line("stopping", `The server said that it ends this stream (${update.reason.replace("END_REASON_", "")}). ${again(update)}`);
  },
  broken: (update) => {
    connection("broken", "connection lost");
    const why =
      update.stood ? "The stream broke off without a last word." :
      update.error instanceof Refusal ? `The stream cannot be had now: ${words(update.error.reason)}.` :
      "The edge cannot be reached.";
    line("broken", `${why} ${again(update)}`).dataset.stood = update.stood;
  },
  finished: () => {
    connection("ended", "finished");
    line("finished", "The reservation has come to its end; nothing more will change.");
  },
};

at("cancel").addEventListener("click", (event) => doing(event, async () => {
  const { reservation, refunded, forfeited } = await dinemesh.cancel(watched.id);
  show(reservation, watched.restaurant);
  const parts = [];
  if (amount(refunded) || !amount(forfeited)) parts.push(`${money(refunded)} go back to your card.`);
  if (amount(forfeited)) parts.push(`${money(forfeited)} are forfeited: it was too late to cancel free of charge.`);
  notice("good", "Cancelled", parts.join(" "));
}));

// ---- what is shown ----

const CANCELLABLE = ["PENDING_DEPOSIT", "PENDING_ACCEPTANCE", "CONFIRMED"].map((one) => `RESERVATION_STATE_${one}`);

function show(reservation, { name, timeZone }) {
  const guests = reservation.partySize === 1 ? "one guest" : `${reservation.partySize} guests`;
  at("state").textContent = words(reservation.state);
  at("state").dataset.state = reservation.state;
  at("table").textContent = `${name}, ${local(reservation.dineTime, timeZone)}, ${guests}`;
  at("deposit").textContent = reservation.deposits
    .map((deposit) => `${money(deposit.amount)} paid, ${money(deposit.held)} held`).join("; ");
  at("free-cancel").textContent = local(reservation.freeCancelTime, timeZone);
  at("reservation-id").textContent = reservation.reservationId;
  at("cancel").disabled = !CANCELLABLE.includes(reservation.state);
}

function line(kind, text) {
  const entry = document.createElement("li");
  const time = document.createElement("time");
  time.dateTime = new Date().toISOString();
  time.textContent = new Date().toLocaleTimeString("en-GB");
  entry.dataset.kind = kind;
  entry.append(time, " ", text);
  const last = at("update").lastElementChild;
  if (kind === "broken" && last?.dataset.kind === "broken" && last.dataset.stood !== "true") last.remove(); // still so
  at("update").append(entry);
  return entry;
}

function connection(kind, text, title = "") {
  Object.assign(at("connection"), { textContent: text, title });
  at("connection").dataset.kind = kind;
}

function notice(kind, title, text = "", fields = []) {
  at("notice").hidden = false;
  at("notice").dataset.kind = kind;
  at("notice-title").textContent = title;
  at("notice-text").textContent = text;
  at("notice").scrollIntoView({ block: "nearest" });
  at("notice-fields").replaceChildren(...fields.map(({ field, description }) => {
    const entry = document.createElement("li");
    entry.textContent = `${field}: ${description}`;
    return entry;
  }));
}

function refused(error) {
  if (error instanceof Refusal) {
    if (error.reason === "POLICY_CHANGED") at("book").hidden = true; // what could be chosen is not to be had
    notice("bad", words(error.reason) || `HTTP ${error.httpStatus}`, error.message, error.fields);
    at("notice").dataset.reason = error.reason;
  } else if (error instanceof Lost) {
    notice("bad", "No answer", "There is no edge at this address, or it does not allow the origin of this page.");
  } else {
    throw error;
  }
}

/** What client.js tells of its calls: the correlation id, and that it comes again. */
function traced({ correlationId, path, error, againInMs }) {
  if (path.endsWith(":watch")) return; // its update have a list of their own
  at("notice-trace").hidden = !correlationId;
  at("correlation").textContent = correlationId ?? "";
  if (!error) return;
  const why = error instanceof Refusal ? `${words(error.reason)}: ${error.message}` : "No answer came.";
  notice("info", "One moment", `${why} Trying again in ${(againInMs / 1000).toFixed(1)} s, with the same request id.`);
  at("notice").dataset.reason = error.reason ?? "";
}

/** Runs what a button asks for, once at a time, and shows why it was refused. */
async function doing(event, work) {
  event.preventDefault();
  const button = event.submitter ?? event.currentTarget;
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  at("notice").hidden = true;
  delete at("notice").dataset.reason;
  try {
    await work();
  } catch (error) {
    refused(error);
  } finally {
    button.removeAttribute("aria-busy");
    if (button.id !== "cancel" || CANCELLABLE.includes(at("state").dataset.state)) button.disabled = false;
  }
}

/** "RESERVATION_STATE_PENDING_ACCEPTANCE" -> "Pending acceptance" */
function words(name) {
  const text = name.replace("RESERVATION_STATE_", "").replaceAll("_", " ").toLowerCase();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** google.type.Money: units is a string (it has 64 bits), nanos a number. */
function amount({ units = "0", nanos = 0 } = {}) {
  return Number(units) + nanos / 1e9;
}

function money(value) {
  const currency = value?.currencyCode;
  if (!currency) return "nothing"; // a zero whose currency was never known
  return new Intl.NumberFormat("en", { style: "currency", currency }).format(amount(value));
}

function local(time, timeZone, style = { dateStyle: "medium", timeStyle: "short" }) {
  return new Intl.DateTimeFormat("en-GB", { timeZone, ...style }).format(new Date(time));
}

// ---- start: next week; edge and token may stand behind the # of the address, which no server ever sees ----

at("date").value = new Date(Date.now() + 7 * 86_400_000).toISOString().slice(0, 10);
const given = new URLSearchParams(location.hash.slice(1));
history.replaceState(null, "", location.pathname); // a token does not belong into the history
if (given.has("edge")) at("edge").value = given.get("edge");
if (given.has("token")) {
  at("token").value = given.get("token");
  at("connect").requestSubmit();
}
