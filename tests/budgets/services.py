"""The services: what each of them has, then reservation's and deposit's own, then what they all stand on."""

from __future__ import annotations

from dinemesh.kit import channel, engines, service
from dinemesh.kit.settings import ServiceSettings
from tests.budgets.sources import Numbers, constant, setting

EVERY = "dinemesh.kit.settings"
RESERVATION = "reservation_svc.settings"
DEPOSIT = "deposit_svc.settings"
RESTAURANT = "restaurant_svc.settings"


def numbers() -> Numbers:
    return _every() | _reservation() | _deposit() | _restaurant() | _bus() | _retention() | _database()


def _every() -> Numbers:
    calls = {name: value for name, value in channel._OPTIONS if isinstance(value, int)}
    served = dict(service._options(ServiceSettings.model_construct()))
    return {
        "service.in_flight_limit": setting(EVERY, "in_flight_limit"),
        "service.message_time": constant("dinemesh.kit.interceptors", "MESSAGE_SECONDS"),
        "service.queue_limit": setting(EVERY, "store_queue_limit"),
        "service.streams_limit": setting(EVERY, "streams_per_subject"),
        "service.stop_grace": setting(EVERY, "stop_grace_seconds"),
        "service.drain": setting(EVERY, "drain_seconds"),
        "service.heartbeat": setting(EVERY, "heartbeat_seconds"),
        "service.longest_watch": setting(EVERY, "watch_max_seconds"),
        "service.watch_poll": setting(EVERY, "watch_poll_ms") / 1000,
        "service.watch_margin": constant("dinemesh.kit.watch", "_DEADLINE_MARGIN_SECONDS"),
        "service.watch_page_pause": constant("dinemesh.kit.watch", "PAGE_PAUSE_SECONDS"),
        "service.watch_polls": max(1, setting(EVERY, "reader_threads") - 1),
        "service.retry_after": constant("dinemesh.kit.interceptors", "_STORE_RETRY_SECONDS"),
        "service.stream_retry_after": constant("dinemesh.kit.interceptors", "_STREAM_RETRY_SECONDS"),
        "service.keys_look": constant("dinemesh.kit.identity", "_LOOK_SECONDS"),
        "service.check": constant("dinemesh.kit.service", "CHECK_SECONDS"),
        "service.check_timeout": constant("dinemesh.kit.service", "CHECK_TIMEOUT_SECONDS"),
        "service.check_misses": constant("dinemesh.kit.service", "CHECKS_UNTIL_NOT_READY"),
        "service.ask": constant("dinemesh.kit.health", "ASK_SECONDS"),
        "service.set_up_retry": constant("dinemesh.kit.service", "SET_UP_RETRY_SECONDS"),
        "service.broker_wait": constant("dinemesh.kit.service", "BROKER_SECONDS"),
        "service.retry_spread": constant("dinemesh.kit.errors", "_MOST_SPREAD_SECONDS"),
        "service.dead_letter_count": constant("dinemesh.kit.service", "DEAD_LETTER_COUNT_SECONDS"),
        "service.ping_allowed": constant("dinemesh.kit.service", "PING_INTERVAL_MS") / 1000,
        "service.watcher_ping": served["grpc.keepalive_time_ms"] / 1000,
        "service.watcher_ping_timeout": served["grpc.keepalive_timeout_ms"] / 1000,
        "service.ping": calls["grpc.keepalive_time_ms"] / 1000,
        "service.ping_timeout": calls["grpc.keepalive_timeout_ms"] / 1000,
        "service.reconnect": calls["grpc.max_reconnect_backoff_ms"] / 1000,
        "service.worker_rest": constant("dinemesh.kit.workers", "_RESTART_SECONDS")[0],
        "service.worker_longest_rest": constant("dinemesh.kit.workers", "_RESTART_SECONDS")[1],
        "service.worker_cancel": constant("dinemesh.kit.workers", "_CANCEL_AGAIN_SECONDS"),
    }


def _reservation() -> Numbers:
    context, saga = "reservation_svc.usecases.context", "reservation_svc.usecases.saga"
    bulkhead = "reservation_svc.usecases.bulkhead"
    return {
        "reservation.least_time": setting(RESERVATION, "least_time_ms") / 1000,
        "reservation.answer_margin": setting(RESERVATION, "answer_margin_ms") / 1000,
        "reservation.charges_at_once": setting(RESERVATION, "charges_at_once"),
        "reservation.queue_limit": setting(RESERVATION, "charge_queue_limit"),
        "reservation.queue_time": setting(RESERVATION, "charge_queue_seconds"),
        "reservation.queue_retry_after": constant(bulkhead, "_RETRY_AFTER_SECONDS"),
        "reservation.places_growth": constant(bulkhead, "_GROWTH"),
        "reservation.places_shrinkage": constant(bulkhead, "_SHRINKAGE"),
        "reservation.customer_attempts": setting(RESERVATION, "customer_attempts_limit"),
        "reservation.customer_seats": setting(RESERVATION, "customer_held_seats_limit"),
        "reservation.unpaid_free": setting(RESERVATION, "unpaid_attempts_free"),
        "reservation.unpaid_pause": setting(RESERVATION, "unpaid_pause_seconds"),
        "reservation.unpaid_window": setting(RESERVATION, "unpaid_window_seconds"),
        "reservation.unpaid_read": constant("reservation_svc.persistence.reservations", "_MOST_UNPAID"),
        "reservation.deposit_deadline": setting(RESERVATION, "deposit_deadline_ms") / 1000,
        "reservation.shortest_charge": constant(saga, "_SHORTEST_CHARGE_SECONDS"),
        "reservation.early_answer": constant(saga, "_EARLY_ANSWER_SECONDS"),
        "reservation.move_tries": constant(context, "_TRIES"),
        "reservation.record_wait": constant(context, "_RECORD_WAIT_SECONDS"),
        "reservation.breaker_window": setting(RESERVATION, "breaker_window_seconds"),
        "reservation.breaker_failures": setting(RESERVATION, "breaker_failures"),
        "reservation.breaker_customers": setting(RESERVATION, "breaker_customers"),
        "reservation.breaker_share": setting(RESERVATION, "breaker_share"),
        "reservation.breaker_calls": setting(RESERVATION, "breaker_window_calls"),
        "reservation.breaker_rest": setting(RESERVATION, "breaker_rest_seconds"),
        "reservation.breaker_longest_rest": setting(RESERVATION, "breaker_longest_rest_seconds"),
        "reservation.health_timeout": constant("reservation_svc.clients.deposit", "HEALTH_SECONDS"),
        "reservation.retry_after": setting(RESERVATION, "retry_after_seconds"),
        "reservation.attempt_deadline": setting(RESERVATION, "attempt_deadline_seconds"),
        "reservation.hold_expire": setting(RESERVATION, "hold_expire_seconds"),
        "reservation.settle_interval": setting(RESERVATION, "settle_interval_seconds"),
        "reservation.settle_batch": constant("reservation_svc.usecases.reconcile", "BATCH"),
        "reservation.lapse_share": setting(RESERVATION, "lapse_share"),
        "reservation.lapse_floor": setting(RESERVATION, "lapse_floor"),
        "reservation.clock_slack": constant("reservation_svc.usecases.clock", "SLACK_SECONDS"),
        "reservation.clock_record": constant("reservation_svc.usecases.clock", "RECORD_SECONDS"),
        "reconcile.longest_rest": constant("dinemesh.kit.failing", "LONGEST_PAUSE_SECONDS"),
        "reservation.unmarked": setting(RESERVATION, "unmarked_seconds"),
    }


def _deposit() -> Numbers:
    usecases = "deposit_svc.usecases"
    return {
        "deposit.charges_limit": setting(DEPOSIT, "charges_in_flight_limit"),
        "deposit.shortest_charge": constant(usecases, "SHORTEST_CHARGE_SECONDS"),
        "deposit.answer_margin": constant(usecases, "ANSWER_MARGIN_SECONDS"),
        "deposit.charge_timeout": setting(DEPOSIT, "charge_timeout_ms") / 1000,
        "deposit.provider_timeout": setting(DEPOSIT, "provider_timeout_ms") / 1000,
        "deposit.provider_tries": constant(usecases, "PROVIDER_ATTEMPTS"),
        "deposit.provider_rest": constant(usecases, "PROVIDER_RETRY_MAX_SECONDS"),
        "deposit.longest_rest": constant(usecases, "LONGEST_PAUSE_SECONDS"),
        "deposit.move_tries": constant(usecases, "MOVE_ATTEMPTS"),
        "deposit.settle_interval": setting(DEPOSIT, "settle_interval_seconds"),
        "deposit.settle_batch": constant(usecases, "RECONCILE_BATCH"),
        "deposit.settle_at_once": setting(DEPOSIT, "settle_at_once"),
        "deposit.settle_share": constant(usecases, "LARGEST_SHARE"),
        "deposit.ahead_share": constant(usecases, "AHEAD_SHARE"),
        "deposit.refill_rest": constant(usecases, "REFILL_LINGER_SECONDS"),
        "deposit.refill_share": constant(usecases, "REFILL_SHARE"),
        "deposit.settle_look": constant(usecases, "LOOK_SECONDS"),
        "deposit.settle_lease": setting(DEPOSIT, "settle_lease_seconds"),
        "deposit.pending_settle": setting(DEPOSIT, "pending_settle_seconds"),
    }


def _restaurant() -> Numbers:
    return {
        "restaurant.changes_at_once": setting(RESTAURANT, "changes_at_once"),
        "restaurant.changes_rate": setting(RESTAURANT, "changes_per_second"),
        "restaurant.changes_burst": setting(RESTAURANT, "changes_burst"),
        "restaurant.turn_retry_after": constant("dinemesh.kit.quota", "_BUSY_SECONDS"),
        "restaurant.group_rest": constant("restaurant_svc.usecases", "LONGEST_PAUSE_SECONDS"),
    }


def _bus() -> Numbers:
    bus, relay, consumer, canaries = (
        f"dinemesh.kit.{name}" for name in ("bus", "relay", "consumer", "canaries")
    )
    return {
        "service.outbox_count": constant("dinemesh.kit.service", "OUTBOX_COUNT_SECONDS"),
        "outbox.refused_rest": constant(relay, "REFUSED_PAUSE_SECONDS"),
        "outbox.refused_longest_rest": constant(relay, "REFUSED_PAUSE_MAX_SECONDS"),
        "outbox.refusals_line": constant(relay, "REFUSALS_LINE_SECONDS"),
        "bus.log_mark": constant(bus, "LOG_MARK_SECONDS"),
        "bus.blocked_check": constant(bus, "BLOCKED_CHECK_SECONDS"),
        "bus.close_timeout": constant(bus, "CLOSE_TIMEOUT_SECONDS"),
        "bus.consume_timeout": constant(bus, "CONSUME_TIMEOUT_SECONDS"),
        "canary.interval": setting(EVERY, "canary_seconds"),
        "canary.look": constant(canaries, "LOOK_SECONDS"),
        "canary.late": constant(canaries, "LATE_SECONDS"),
        "canary.first": constant(canaries, "FIRST_SECONDS"),
        "canary.on_the_way": constant(canaries, "ON_THE_WAY_SECONDS"),
        "canary.margin": constant(canaries, "MARGIN_SECONDS"),
        "canary.healed": constant(canaries, "HEALED_SECONDS"),
        "outbox.batch": constant(relay, "BATCH"),
        "outbox.lease": constant("dinemesh.kit.outbox", "LEASE_SECONDS"),
        "outbox.sweep": constant(relay, "SWEEP_SECONDS"),
        "outbox.mark": constant(relay, "MARK_SECONDS"),
        "outbox.mark_rows": constant(relay, "MARK_ROWS"),
        "outbox.in_hand": constant(relay, "MOST_IN_HAND"),
        "outbox.events_in_message": setting(EVERY, "events_in_message"),
        "bus.connect_timeout": constant(bus, "CONNECT_TIMEOUT_SECONDS"),
        "bus.confirm": constant(bus, "CONFIRM_TIMEOUT_SECONDS"),
        "bus.heartbeat": constant(bus, "HEARTBEAT_SECONDS"),
        "bus.reconnect_tries": constant(bus, "RECONNECT_ATTEMPTS"),
        "bus.reconnect": constant(bus, "RECONNECT_MAX_SECONDS"),
        "bus.refused_rest": constant(bus, "REFUSED_PAUSE_SECONDS"),
        "bus.delivery_limit": constant(bus, "DELIVERY_LIMIT"),
        "bus.log_prefetch": constant(bus, "LOG_PREFETCH"),
        "bus.given_back": constant("dinemesh.kit.dead_letters", "GIVEN_BACK_SECONDS"),
        "inbox.prefetch": constant(consumer, "PREFETCH"),
        "inbox.at_once": constant(consumer, "EVENTS_AT_ONCE"),
        "inbox.linger": constant(consumer, "LINGER_SECONDS"),
        "inbox.rest": constant(consumer, "PAUSE_SECONDS"),
        "inbox.requeue_rest": constant(consumer, "REQUEUE_PAUSE_SECONDS"),
        "inbox.versions_ahead": constant("dinemesh.kit.inbox", "MOST_VERSIONS_AHEAD"),
        "inbox.reconnect_rest": constant(consumer, "RECONNECT_PAUSE_SECONDS"),
        "history.watch_batch": constant("history_svc.usecases", "WATCH_BATCH"),
        "restaurant.watch_batch": constant("restaurant_svc.usecases", "WATCH_BATCH"),
    }


def _retention() -> Numbers:
    retention = "dinemesh.kit.retention"
    return {
        "retention.days": setting(EVERY, "retention_days"),
        "retention.look": constant(retention, "PASS_SECONDS"),
        "retention.walk": constant(retention, "WALK_SECONDS"),
        "retention.step": constant(retention, "STEP_ROWS"),
        "retention.rest_times": constant(retention, "REST_TIMES"),
        "retention.least_rest": constant(retention, "LEAST_REST_SECONDS"),
        "retention.busy": constant(retention, "BUSY_SECONDS"),
    }


def _database() -> Numbers:
    store = "dinemesh.kit.store"
    alive = engines._KEEPALIVE
    return {
        "store.group": constant(store, "MAX_GROUP"),
        "store.linger": constant(store, "LINGER_SECONDS"),
        "store.put_off": constant(store, "PUT_OFF_SECONDS"),
        "store.hung_look": constant(store, "HUNG_LOOK_SECONDS"),
        "store.put_off_pause": constant(store, "PUT_OFF_PAUSE_SECONDS"),
        "store.single_tries": constant(store, "SINGLE_ATTEMPTS"),
        "store.retry_after": constant(store, "RETRY_AFTER_SECONDS"),
        "store.lock_timeout": constant("dinemesh.kit.engines", "LOCK_TIMEOUT_SECONDS"),
        "store.statement_timeout": constant("dinemesh.kit.engines", "STATEMENT_TIMEOUT_SECONDS"),
        "store.read_timeout": constant("dinemesh.kit.engines", "READ_TIMEOUT_SECONDS"),
        "store.room": constant("dinemesh.kit.engines", "ROOM_BYTES") / 1024,
        "store.look": constant(store, "LOOK_SECONDS"),
        "store.stalled_looks": constant(store, "STALLED_LOOKS"),
        "store.cut_looks": constant(store, "CUT_LOOKS"),
        "store.try": constant(store, "TRY_SECONDS"),
        "store.rehearsal": constant(store, "REHEARSAL_SECONDS"),
        "store.quiet": constant(store, "QUIET_SECONDS"),
        "store.reader_rest": constant(store, "READER_REST_SECONDS"),
        "store.connect_timeout": constant("dinemesh.kit.engines", "CONNECT_TIMEOUT_SECONDS"),
        "store.migrate_connect": constant("dinemesh.kit.migrate", "_CONNECT_SECONDS"),
        "store.idle_in_transaction": constant("dinemesh.kit.engines", "IDLE_IN_TRANSACTION_SECONDS"),
        "store.ping": alive["keepalives_idle"],
        "store.ping_interval": alive["keepalives_interval"],
        "store.pings": alive["keepalives_count"],
        "store.unanswered": alive["tcp_user_timeout"] / 1000,
    }
