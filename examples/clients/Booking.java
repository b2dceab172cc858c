import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import dinemesh.reservation.v1.ReservationOuterClass.ReservationState;
import dinemesh.reservation.v1.ReservationServiceGrpc;
import dinemesh.reservation.v1.ReservationServiceOuterClass.CancelReservationRequest;
import dinemesh.reservation.v1.ReservationServiceOuterClass.CreateReservationRequest;
import dinemesh.reservation.v1.ReservationServiceOuterClass.ListAvailableSlotsRequest;
import dinemesh.reservation.v1.ReservationServiceOuterClass.WatchReservationRequest;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.util.concurrent.TimeUnit;

/** Books a table, is refused, watches and cancels, over the stubs that docs/CLIENTS.md generates. */
public class Booking {
  private static final long DEADLINE_SECONDS = 30;

  public static void main(String[] arguments) throws Exception {
    var channel = Grpc.newChannelBuilder(given("EDGE"), InsecureChannelCredentials.create()).build();
    var metadata = new Metadata();
    metadata.put(
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + given("TOKEN"));
    var stub =
        ReservationServiceGrpc.newBlockingStub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));

    var slots =
        stub.withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS)
            .listAvailableSlots(
                ListAvailableSlotsRequest.newBuilder()
                    .setRestaurantId(given("RESTAURANT"))
                    .setDate(given("DATE"))
                    .setPartySize(2)
                    .build());
    var request =
        CreateReservationRequest.newBuilder()
            .setRequestId(given("REQUEST"))
            .setRestaurantId(given("RESTAURANT"))
            .setDineTime(slots.getSlots(0).getDineTime())
            .setPolicyEtag(slots.getPolicyEtag())
            .setPaymentToken("tok_visa");

    try {
      stub.withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS).createReservation(request.build());
    } catch (StatusRuntimeException refusal) {
      for (Any detail : StatusProto.fromThrowable(refusal).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          System.out.println("refused " + detail.unpack(ErrorInfo.class).getReason());
        } else if (detail.is(BadRequest.class)) {
          for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            System.out.println("wrong " + violation.getField());
          }
        }
      }
    }

    var booked =
        stub.withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS)
            .createReservation(request.setPartySize(2).build())
            .getReservation();
    System.out.println("booked " + booked.getReservationId());

    var messages =
        stub.withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS)
            .watchReservation(
                WatchReservationRequest.newBuilder().setReservationId(booked.getReservationId()).build());
    while (messages.hasNext()) {
      if (messages.next().getReservation().getState() == ReservationState.RESERVATION_STATE_CONFIRMED) {
        System.out.println("watched CONFIRMED");
        break;
      }
    }

    var refunded =
        stub.withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS)
            .cancelReservation(
                CancelReservationRequest.newBuilder().setReservationId(booked.getReservationId()).build())
            .getRefunded();
    System.out.println("cancelled " + refunded.getUnits() + " " + refunded.getCurrencyCode());
    channel.shutdownNow().awaitTermination(DEADLINE_SECONDS, TimeUnit.SECONDS);
  }

  private static String given(String name) {
    return System.getenv(name);
  }
}
