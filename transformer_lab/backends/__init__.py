"""One short file per framework, and `manual`: the plain version of every operation, written once for all of them."""
