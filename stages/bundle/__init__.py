"""What lies in a bundle beside the models: the program that runs them on a device."""
