// Books a table, is refused, watches and cancels, over the stubs that docs/CLIENTS.md generates.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	reservationv1 "dinemesh.example/go/dinemesh/reservation/v1"
)

func main() {
	channel, err := grpc.NewClient(os.Getenv("EDGE"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	client := reservationv1.NewReservationServiceClient(channel)
	ctx, done := context.WithTimeout(context.Background(), 30*time.Second)
	defer done()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+os.Getenv("TOKEN"))

	slots, err := client.ListAvailableSlots(ctx, &reservationv1.ListAvailableSlotsRequest{
		RestaurantId: os.Getenv("RESTAURANT"), Date: os.Getenv("DATE"), PartySize: 2})
	check(err)
	request := &reservationv1.CreateReservationRequest{
		RequestId: os.Getenv("REQUEST"), RestaurantId: os.Getenv("RESTAURANT"), DineTime: slots.Slots[0].DineTime,
		PolicyEtag: slots.PolicyEtag, PaymentToken: "tok_visa"}

	_, err = client.CreateReservation(ctx, request)
	for _, detail := range status.Convert(err).Details() {
		switch told := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Println("refused", told.Reason)
		case *errdetails.BadRequest:
			for _, violation := range told.FieldViolations {
				fmt.Println("wrong", violation.Field)
			}
		}
	}

	request.PartySize = 2
	booked, err := client.CreateReservation(ctx, request)
	check(err)
	id := booked.Reservation.ReservationId
	fmt.Println("booked", id)

	watch, err := client.WatchReservation(ctx, &reservationv1.WatchReservationRequest{ReservationId: id})
	check(err)
	for {
		message, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			log.Fatal("the watch ended early")
		}
		check(err)
		if message.GetReservation().GetState() == reservationv1.ReservationState_RESERVATION_STATE_CONFIRMED {
			fmt.Println("watched CONFIRMED")
			break
		}
	}

	cancelled, err := client.CancelReservation(ctx, &reservationv1.CancelReservationRequest{ReservationId: id})
	check(err)
	fmt.Println("cancelled", cancelled.Refunded.Units, cancelled.Refunded.CurrencyCode)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
