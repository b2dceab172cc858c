"""The HTTP/JSON side of the contracts as an OpenAPI 3.1 document, made from descriptors and comments."""
