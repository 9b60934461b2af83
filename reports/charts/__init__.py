"""The charts: one file each, a function from the subjects on the page to a Panel."""
