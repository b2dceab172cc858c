// Books a table, is refused and cancels, over the types that openapi-typescript makes and openapi-fetch.
import createClient from 'openapi-fetch';
import type { paths } from './dinemesh.js';

const { DATE, EDGE, REQUEST, RESTAURANT, TOKEN } = process.env as Record<string, string>;
const client = createClient<paths>({ baseUrl: `http://${EDGE}`, headers: { authorization: `Bearer ${TOKEN}` } });

const slots = await client.GET('/v1/restaurants/{restaurant_id}/availableSlots', {
  params: { path: { restaurant_id: RESTAURANT }, query: { date: DATE, party_size: 2 } },
});
const body = {
  requestId: REQUEST,
  restaurantId: RESTAURANT,
  dineTime: slots.data!.slots[0].dineTime,
  partySize: 2,
  policyEtag: slots.data!.policyEtag,
  paymentToken: 'tok_visa',
};
const refusal = await client.POST('/v1/reservations', { body: { ...body, partySize: 0 } });
for (const detail of refusal.error!.details) {
  if ('reason' in detail) console.log('refused', detail.reason);
  if ('fieldViolations' in detail) for (const one of detail.fieldViolations) console.log('wrong', one.field);
}
const booked = await client.POST('/v1/reservations', { body });
const reservation_id = booked.data!.reservation.reservationId;
console.log('booked', reservation_id);
const cancelled = await client.POST('/v1/reservations/{reservation_id}:cancel', { params: { path: { reservation_id } } });
console.log('cancelled', cancelled.data!.refunded.units, cancelled.data!.refunded.currencyCode);
