"""What Tables 4 and 7 compare TISS-Net with: one file per method, each on the 2.5D U-Net of this package."""
