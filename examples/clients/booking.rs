//! Books a table, is refused, watches and cancels, over the stubs that docs/CLIENTS.md generates.

#[allow(dead_code)]
mod contracts {
    include!(concat!(env!("OUT_DIR"), "/contracts.rs"));
}

use std::env::var;
use std::error::Error;

use contracts::dinemesh::reservation::v1::reservation_service_client::ReservationServiceClient;
use contracts::dinemesh::reservation::v1::watch_reservation_response::Kind;
use contracts::dinemesh::reservation::v1::{
    CancelReservationRequest, CreateReservationRequest, ListAvailableSlotsRequest, ReservationState,
    WatchReservationRequest,
};
use contracts::google::rpc;
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let channel = Endpoint::from_shared(format!("http://{}", var("EDGE")?))?.connect().await?;
    let token: MetadataValue<Ascii> = format!("Bearer {}", var("TOKEN")?).parse()?;
    let mut client = ReservationServiceClient::with_interceptor(channel, move |mut call: tonic::Request<()>| {
        call.metadata_mut().insert("authorization", token.clone());
        Ok(call)
    });

    let asked = ListAvailableSlotsRequest {
        restaurant_id: var("RESTAURANT")?,
        date: var("DATE")?,
        party_size: 2,
        ..Default::default()
    };
    let slots = client.list_available_slots(asked).await?.into_inner();
    let mut request = CreateReservationRequest {
        request_id: var("REQUEST")?,
        restaurant_id: var("RESTAURANT")?,
        dine_time: slots.slots[0].dine_time.clone(),
        policy_etag: slots.policy_etag,
        payment_token: "tok_visa".into(),
        ..Default::default()
    };

    let refusal = client.create_reservation(request.clone()).await.expect_err("nobody comes");
    for detail in rpc::Status::decode(refusal.details())?.details {
        match detail.type_url.rsplit('/').next() {
            Some("google.rpc.ErrorInfo") => {
                println!("refused {}", rpc::ErrorInfo::decode(&*detail.value)?.reason);
            }
            Some("google.rpc.BadRequest") => {
                for violation in rpc::BadRequest::decode(&*detail.value)?.field_violations {
                    println!("wrong {}", violation.field);
                }
            }
            _ => {}
        }
    }

    request.party_size = 2;
    let booked = client.create_reservation(request).await?.into_inner();
    let reservation_id = booked.reservation.ok_or("no reservation")?.reservation_id;
    println!("booked {reservation_id}");

    let asked = WatchReservationRequest { reservation_id: reservation_id.clone() };
    let mut watch = client.watch_reservation(asked).await?.into_inner();
    loop {
        let message = watch.message().await?.ok_or("the watch ended early")?;
        if let Some(Kind::Reservation(seen)) = message.kind {
            if seen.state() == ReservationState::Confirmed {
                println!("watched CONFIRMED");
                break;
            }
        }
    }

    let cancelled = client.cancel_reservation(CancelReservationRequest { reservation_id }).await?.into_inner();
    let refunded = cancelled.refunded.ok_or("no amount")?;
    println!("cancelled {} {}", refunded.units, refunded.currency_code);
    Ok(())
}
