"""From what the scanner gave to what the network takes, and back."""
