"""From a download to a datalist."""
