// Shows /openapi.json. A file of its own: the page's Content-Security-Policy allows no script inside of HTML.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#reference",
  deepLinking: true, // an operation has an address: /docs#/ReservationService/CreateReservation
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0, // schemas are shown where they are used
  validatorUrl: null, // else the document would be sent to a server of the makers
});
