"""What moves a router between the steps of a training so that its experts are used alike: one file per rule."""
