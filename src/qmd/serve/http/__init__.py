"""The HTTP door: parse a request, ask the service, write the answer. `create_app` makes it."""
