"""Finding the first layer at which a conversion goes wrong."""
