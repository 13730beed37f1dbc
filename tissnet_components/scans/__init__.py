"""What comes in: finding, reading and checking the scans of patients, and lists of them."""
