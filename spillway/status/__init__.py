"""What a fleet is doing now: read from the local stack or from AWS, and shown on one screen."""
