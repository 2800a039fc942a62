"""How tokens look at each other: one file per kind, chosen by the `attention` group of the configuration."""
