"""The parts that the TISS-Net bundles declare in their configs."""
