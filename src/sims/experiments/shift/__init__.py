"""Distribution control: the proportions of an attribute that a model generates, moved to a target."""
