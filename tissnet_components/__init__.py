"""The parts that the TISS-Net bundles declare in their configs."""

from tissnet_components.moved import forwarding

__getattr__ = forwarding(__name__)
