"""What the core needs from the outside world, by who uses it. Implementations live in stores/ and models/."""
