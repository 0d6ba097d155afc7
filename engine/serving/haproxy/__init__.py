"""HAProxy before the gateways of a Ray of our own, where Ray's proxy would cost as much CPU as the gateway itself."""
