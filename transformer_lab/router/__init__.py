"""Which experts a token goes to, and with what weight: one file per named router, chosen by the `router` group."""
