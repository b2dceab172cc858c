"""The way out of the service: deposit_svc over gRPC."""
