"""Where devices arrive: gRPC over TLS, one bidirectional stream per device, and models by digest."""
