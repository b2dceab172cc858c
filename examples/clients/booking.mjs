// Books a table, is refused, watches and cancels, with the contracts loaded as docs/CLIENTS.md does.
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const { CONTRACTS, DATE, EDGE, REQUEST, RESTAURANT, TOKEN } = process.env;
const options = { includeDirs: [CONTRACTS], enums: String, longs: String };
const contracts = loader.loadSync('dinemesh/reservation/v1/reservation_service.proto', options);
const { ReservationService } = grpc.loadPackageDefinition(contracts).dinemesh.reservation.v1;
const client = new ReservationService(EDGE, grpc.credentials.createInsecure());

const details = new protobuf.Root();
details.resolvePath = (_, path) => `${CONTRACTS}/${path}`;
details.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto']);

const metadata = new grpc.Metadata();
metadata.set('authorization', `Bearer ${TOKEN}`);
const deadline = () => ({ deadline: Date.now() + 30_000 });
const call = (name, request) =>
  new Promise((resolve, reject) => {
    client[name](request, metadata, deadline(), (error, answer) => (error ? reject(error) : resolve(answer)));
  });

const slots = await call('ListAvailableSlots', { restaurantId: RESTAURANT, date: DATE, partySize: 2 });
const request = {
  requestId: REQUEST,
  restaurantId: RESTAURANT,
  dineTime: slots.slots[0].dineTime,
  policyEtag: slots.policyEtag,
  paymentToken: 'tok_visa',
};

try {
  await call('CreateReservation', request);
} catch (refusal) {
  const [packed] = refusal.metadata.get('grpc-status-details-bin');
  for (const { type_url, value } of details.lookupType('google.rpc.Status').decode(packed).details) {
    const detail = details.lookupType(type_url.split('/').pop()).decode(value);
    if (detail.reason) console.log('refused', detail.reason);
    for (const violation of detail.fieldViolations ?? []) console.log('wrong', violation.field);
  }
}

const booked = await call('CreateReservation', { ...request, partySize: 2 });
const { reservationId } = booked.reservation;
console.log('booked', reservationId);

for await (const { reservation } of client.WatchReservation({ reservationId }, metadata, deadline())) {
  if (reservation?.state === 'RESERVATION_STATE_CONFIRMED') {
    console.log('watched CONFIRMED');
    break;
  }
}

const { refunded } = await call('CancelReservation', { reservationId });
console.log('cancelled', refunded.units, refunded.currencyCode);
client.close();
