"""HAProxy before the gateways of a Ray of our own, in place of Ray's proxy, through which first tokens come later."""
