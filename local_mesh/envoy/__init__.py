"""Envoy on this machine: what the edge and the proxy before deposit are told, and how they run."""
