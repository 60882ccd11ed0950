"""From a rule's text to its program; every error names the place in the text."""
